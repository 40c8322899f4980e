"""Evidence from a board through OpenSSH: a real `sshd` on loopback, with a key, a port and a home of its own.

Skipped where no `sshd` is installed (Debian: openssh-server). Nothing of the user's own ~/.ssh is read.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from edgevlm_runner.bundle import Bundle, open_bundle

from edgevlm_deploy import device, validation
from edgevlm_deploy.errors import DeviceError
from edgevlm_deploy.progress import Silent

pytestmark = pytest.mark.slow

SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"]))
SFTP_SERVERS = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec")

SSHD_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
ForceCommand {folder}/login
Subsystem sftp {sftp_server} -e -l INFO
"""
SSH_CONFIG = """
Host board
    HostName 127.0.0.1
    Port {port}
Host *
    IdentityFile {folder}/key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""
# Every login ends up in the board's own home. While the file `cable` is there, a transfer is cut off after as
# many bytes as it says.
LOGIN = """#!/bin/sh
export HOME={folder}/home PATH={folder}/bin:$PATH
cd "$HOME" || exit
case $SSH_ORIGINAL_COMMAND in
    *sftp-server*) exec 2>> {folder}/sftp.log ;;
    *) exec sh -c "$SSH_ORIGINAL_COMMAND" ;;
esac
if [ -e {folder}/cable ]; then
    {python} {folder}/pass.py "$(cat {folder}/cable)" | $SSH_ORIGINAL_COMMAND
else
    exec $SSH_ORIGINAL_COMMAND
fi
"""
PASS = """
import os, sys

left = int(sys.argv[1])
while left and (some := os.read(0, min(left, 65536))):
    left -= os.write(1, some)
"""


@dataclass(frozen=True)
class Board:
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    def bundle(self, bundle: Bundle) -> Path:
        """Where the board keeps this bundle."""
        return self.folder / "home" / ".cache" / "edgevlm-device" / bundle.digest[:16] / "bundle"

    def written(self) -> dict[str, int]:
        """Bytes that each file of the bundle got since the last call; the SFTP server says so itself."""
        log = self.folder / "sftp.log"
        found = re.findall(r'close "(.*?)" bytes read \d+ written (\d+)', log.read_text())
        log.unlink()
        return {path.partition("/bundle/")[2]: int(count) for path, count in found if int(count)}


def sftp_server() -> str:
    for folder in SFTP_SERVERS:
        if (Path(folder) / "sftp-server").is_file():
            return f"{folder}/sftp-server"
    pytest.skip("sftp-server is not installed (Debian: openssh-sftp-server)")


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_name(path.name + ".pub").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    folder = tmp_path_factory.mktemp("board")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        board = Board(folder, free.getsockname()[1])
    values = {
        "folder": folder,
        "port": board.port,
        "python": sys.executable,
        "sftp_server": sftp_server(),
    }
    for name, text in (("sshd_config", SSHD_CONFIG), ("ssh_config", SSH_CONFIG), ("login", LOGIN)):
        (folder / name).write_text(text.format(**values))
    (folder / "login").chmod(0o755)
    (folder / "pass.py").write_text(PASS)
    make_key(folder / "key")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {make_key(folder / 'host_key')}")
    if os.geteuid() == 0:
        # Started by root, sshd wants the empty folder that its service file makes.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = folder / "sshd.log"
    process = subprocess.Popen(
        [SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(log)], stdin=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            if process.poll() is not None:
                pytest.fail(f"sshd does not start: {log.read_text()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", board.port)):
                break
            time.sleep(0.05)
        yield board
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def board(server: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    """The board as new: an empty home and a whole cable."""
    monkeypatch.setenv("EDGEVLM_SSH_CONFIG", str(server.folder / "ssh_config"))
    for name in ("home", "bin"):
        shutil.rmtree(server.folder / name, ignore_errors=True)
        (server.folder / name).mkdir()
    for name in ("cable", "sftp.log"):
        (server.folder / name).unlink(missing_ok=True)
    return server


@pytest.fixture
def path(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(compiled, tmp_path / compiled.name))


def validate(path: Path, name: str, python: str = sys.executable) -> validation.Validation:
    return validation.validate(path, False, Silent(), device.named(name, python, silence_s=120.0))


def partial(bundle: Bundle, there: Path) -> dict[str, int]:
    """name → bytes of what lies there and is shorter than it should be."""
    sizes = {name: entry["bytes"] for name, entry in bundle.manifest["files"].items()}
    return {
        name: (there / name).stat().st_size
        for name, size in sizes.items()
        if (there / name).exists() and (there / name).stat().st_size < size
    }


def test_the_bundle_is_copied_run_there_judged_here_and_sealed(board: Board, path: Path) -> None:
    done = validate(path, board.url)
    assert done.sealed
    bundle = open_bundle(path)
    there = board.bundle(bundle)
    assert open_bundle(there).digest == bundle.digest
    assert json.loads((there.parent / "evidence" / "evidence.json").read_text()) == done.evidence


def test_a_host_of_the_users_configuration(board: Board, path: Path) -> None:
    """With its port, which `ssh:board` does not say. A second run sends nothing."""
    with (board.folder / "known_hosts").open("a") as known:
        known.write((board.folder / "known_hosts").read_text().replace("127.0.0.1", "board"))
    validate(path, "ssh:board")
    assert board.written()
    validate(path, "ssh:board")
    assert board.written() == {}


def test_a_transfer_that_was_cut_off_goes_on_within_the_file(board: Board, path: Path) -> None:
    bundle = open_bundle(path)
    sizes = {name: entry["bytes"] for name, entry in bundle.manifest["files"].items()}
    largest = "graphs/decoder.onnx"
    # The first of its folder; each folder's files go through a connection of their own.
    (board.folder / "cable").write_text(str(sizes[largest] // 2))
    with pytest.raises(DeviceError, match=r"cannot copy the bundle to ssh://.*[Tt]he same command goes on"):
        validate(path, board.url)
    there = board.bundle(bundle)
    ((cut, begun),) = partial(bundle, there).items()
    assert cut == largest and 0.4 < begun / sizes[largest] < 0.5
    absent = sum(size for name, size in sizes.items() if not (there / name).exists())
    board.written()

    (board.folder / "cable").unlink()
    assert validate(path, board.url).sealed
    sent = board.written()
    assert sent[largest] == sizes[largest] - begun
    assert sum(sent.values()) == absent + sizes[largest] - begun


def test_a_beginning_with_other_bytes_is_copied_anew(board: Board, path: Path) -> None:
    bundle = open_bundle(path)
    there = board.bundle(bundle)
    (there / "graphs").mkdir(parents=True)
    name = next(one for one in bundle.manifest["files"] if one.startswith("graphs/"))
    beginning = bytearray(bundle.path(name).read_bytes()[:5000])
    beginning[4000] ^= 1
    (there / name).write_bytes(beginning)
    validate(path, board.url)
    assert board.written()[name] == bundle.manifest["files"][name]["bytes"]
    assert (there / name).read_bytes() == bundle.path(name).read_bytes()


def test_a_closed_port(board: Board, path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name = f"ssh://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            DeviceError, match=r"cannot reach ssh://.*Connection refused.*Start the SSH server"
        ):
            validate(path, name)


def test_an_unknown_host_key(board: Board, path: Path) -> None:
    known = board.folder / "known_hosts"
    text = known.read_text()
    known.write_text("")
    try:
        with pytest.raises(DeviceError, match=r"Host key verification failed.*compare the fingerprint"):
            validate(path, board.url)
    finally:
        known.write_text(text)


def test_a_key_that_is_not_accepted(board: Board, path: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    config = tmp_path / "ssh_config"
    text = (board.folder / "ssh_config").read_text()
    config.write_text(text.replace(f"IdentityFile {board.folder}/key", f"IdentityFile {tmp_path}/other"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVLM_SSH_CONFIG", str(config))
        with pytest.raises(DeviceError, match=r"Permission denied .*publickey.*ssh-copy-id"):
            validate(path, board.url)


def test_a_python_that_is_not_there(board: Board, path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no Python at 'python3.99' .*--device-python"):
        validate(path, board.url, "python3.99")


def test_a_disk_without_room(board: Board, path: Path) -> None:
    """Said before the first byte is sent."""
    df = board.folder / "bin" / "df"
    df.write_text("#!/bin/sh\necho '/dev/mmcblk0p1 14384136 14384036 100 100% /'\n")
    df.chmod(0o755)
    with pytest.raises(DeviceError, match=r"needs [0-9,]+ more bytes .*102,400 are free. Free some space"):
        validate(path, board.url)
    assert not (board.folder / "sftp.log").exists()


def test_a_disk_that_fills_up(board: Board, path: Path) -> None:
    """A write that the kernel refuses for want of space; SFTP has no code for it."""
    bundle = open_bundle(path)
    board.bundle(bundle).mkdir(parents=True)
    (board.bundle(bundle) / "items.jsonl").symlink_to("/dev/full")
    with pytest.raises(DeviceError, match=r"cannot copy the bundle .*items.jsonl.*Failure.*full disk"):
        validate(path, board.url)
    assert open_bundle(path).seal is None


def test_the_command_line_says_one_sentence(board: Board, path: Path) -> None:
    command = [sys.executable, "-m", "edgevlm_deploy.cli", "validate", str(path), "--device", board.url]
    done = subprocess.run(
        [*command, "--device-python", "python3.99"], capture_output=True, text=True, check=False
    )
    assert done.returncode == DeviceError.exit_code == 19
    assert "no Python at" in done.stderr and "Traceback" not in done.stderr
