# shellcheck shell=sh
# Sourced after setup.sh, and after its "setup run", by what keeps something in physview's cache.

# Prints a folder of the cache, which it makes where it is missing; its words are on stderr and it
# fails where somebody other than root and the caller could change what is in there.
cache_folder() {
	"$venv/bin/python" -I -c '
import sys

from physview import errors, kernels

try:
    print(kernels.make_cache_dir(*sys.argv[1:]))
except errors.PhysviewError as error:
    sys.exit(f"physview: {error}")
' "$@"
}
