"""`python -m edgevlm_deploy.cli`."""

from edgevlm_deploy.cli import main

main()
