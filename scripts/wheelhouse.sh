# shellcheck shell=sh
# Sourced after setup.sh by scripts that make packages, or pack physview with all that it needs.
# shellcheck disable=SC2154 # setup.sh sets these variables

# copy_sources FOLDER: the checkout, without what was made in it.
copy_sources() {
	mkdir -p "$1"
	tar -C "$root" --exclude=./.venv --exclude=./.git --exclude=./build --exclude=./dist --exclude=./bundle \
		--exclude='*.so' --exclude='__pycache__' --exclude='./*.egg-info' --exclude='./.*_cache' \
		--exclude='*.pyz' -cf - . | tar -xf - -C "$1"
}

# pip with the markers of another Python, as in: tomli; python_version < "3.11". Its options choose the
# wheels of another Python, but it would leave out what only that Python needs.
pip_for_another_python='
import sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers

python, machine = sys.argv[1:3]
changed = {"python_version": python, "python_full_version": f"{python}.99", "platform_machine": machine}
changed |= {"implementation_version": f"{python}.99"}
own = markers.default_environment
markers.default_environment = lambda: own() | changed
sys.exit(main(sys.argv[3:]))'

# wheelhouse FOLDER PYTHON ARCHITECTURE REQUIREMENT…: fetches wheels for a Python, such as 3.13, on
# x86_64 or aarch64.
wheelhouse() {
	into=$1
	version=$(echo "$2" | tr -d .)
	architecture=$3
	what="for Python $2 on $3"
	shift 1
	python_version=$1
	shift 2
	mkdir -p "$into"
	# Each older glibc is a platform of its own for pip.
	platforms=
	for glibc in 2_17 2_24 2_26 2_27 2_28; do
		platforms="$platforms --platform manylinux_${glibc}_$architecture"
	done
	# shellcheck disable=SC2086 # a list
	quietly "$venv/bin/python" -I -c "$pip_for_another_python" "$python_version" "$architecture" download -q --dest "$into" --only-binary=:all: --prefer-binary \
		--python-version "$python_version" --implementation cp --abi "cp$version" --abi abi3 --abi none \
		$platforms --platform "manylinux2014_$architecture" --platform "manylinux1_$architecture" \
		"$@" || fail "pip cannot fetch the wheels $what: see above"
}
