#!/bin/sh
# An emulated ARM64 machine: a Debian arm64 root in which QEMU runs the edgevlm wheel.
#
#   tests/device/arm64/root.sh build PYTHON ROOT    make or complete it, install the wheel of this checkout
#   tests/device/arm64/root.sh run ROOT COMMAND …   run a command inside; ROOT/bundles is its folder /bundles
#
# Needs root rights and the Debian packages debootstrap, qemu-user-static and binfmt-support. Packages come
# from the mirrors that apt and pip of this machine are configured with; nothing is fetched inside the root.
set -eu

suite=bookworm
python=3.11

build() {
    host_python=$1 root=$2 checkout=$(cd "$(dirname "$0")/../../.." && pwd)
    for command in debootstrap qemu-aarch64-static update-binfmts; do
        command -v $command > /dev/null || fail "$command is missing: apt-get install debootstrap qemu-user-static binfmt-support"
    done
    [ "$(id -u)" = 0 ] || fail "a Debian root can only be made by the user root"
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

    if [ ! -e "$root/.complete" ]; then
        rm -rf "$root"
        debootstrap --arch=arm64 --variant=minbase --include=python3 "$suite" "$root" "$(mirror)"
        touch "$root/.complete"
    fi

    # Without a list of processors XNNPACK takes the machine for unknown, and LiteRT refuses every graph.
    mkdir -p "$root/sys/devices/system/cpu"
    echo 0 | tee "$root/sys/devices/system/cpu/possible" > "$root/sys/devices/system/cpu/present"

    # The host's pip unpacks the other machine's wheels, at the locked versions: emulated, it would take minutes.
    rm -rf "$root/edgevlm" "$root/wheel"
    mkdir -p "$root/bundles"
    "$host_python" -m build --wheel --no-isolation --outdir "$root/wheel" "$checkout"
    "$host_python" -m pip install --quiet --no-compile --target "$root/edgevlm" \
        --constraint "$checkout/constraints.txt" --only-binary=:all: --implementation cp --python-version "$python" \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 "$root"/wheel/edgevlm-*.whl ai-edge-litert
    run "$root" python3 -c 'import platform, ai_edge_litert, onnxruntime
print(platform.machine(), platform.python_version(), "onnxruntime", onnxruntime.__version__)'
}

# /proc is mounted for the command alone. The host's /sys must stay away: there ONNX Runtime finds the host's
# processors, takes them for its own and crashes. In its place stands a list of one processor; the instruction
# sets come from the (emulated) kernel.
run() {
    root=$1 && shift
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU=cortex-a76 PYTHONPATH=/edgevlm \
        PYTHONDONTWRITEBYTECODE=1 EDGEVLM_CACHE=/bundles/cache \
        unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root" "$@"
}

# The Debian mirror of this suite that apt uses here.
mirror() {
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' | sed -n "s/^$suite //p" | head -n 1 | grep . ||
        fail "apt knows no mirror of Debian $suite; add one to its sources"
}

fail() {
    echo "error: $*" >&2
    exit 1
}

action=$1 && shift
"$action" "$@"
