# shellcheck shell=sh
# Sourced after setup.sh, and after its "setup run", by scripts that keep files in physview's cache.

# cache_folder NAME…: makes a folder of the cache if it is missing, and prints its path. Fails, with a
# message on stderr, if a user other than root and the caller could change its content.
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
