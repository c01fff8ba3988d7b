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
	quietly "$venv/bin/python" -I -m pip download -q --dest "$into" --only-binary=:all: --prefer-binary \
		--python-version "$python_version" --implementation cp --abi "cp$version" --abi abi3 --abi none \
		$platforms --platform "manylinux2014_$architecture" --platform "manylinux1_$architecture" \
		"$@" || fail "pip cannot fetch the wheels $what: see above"
}
