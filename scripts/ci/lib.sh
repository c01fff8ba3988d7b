# shellcheck shell=sh
# Sourced by the scripts in scripts/ci: what several of them need.

checkout=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")

say() {
	echo "ci: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

# need_root WHAT: stop unless this is root.
need_root() {
	[ "$(id -u)" -eq 0 ] || fail "$1 needs root: run it as root"
}

# install_packages NAME…: apt's packages, where some are missing. Scripts that run at the same time
# wait for each other: one apt-get update refuses to run beside another.
install_packages() {
	exec 9<"$checkout"
	flock 9
	install_missing "$@"
	exec 9<&-
}

install_missing() {
	for package; do
		dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' && continue
		say "installing $*"
		apt-get update -qq >/dev/null || say "apt-get could not update its lists"
		# No service that a package starts may keep the lock.
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			-o DPkg::Lock::Timeout=300 "$@" >/dev/null 9<&- || fail "apt-get could not install $*: see above"
		return
	done
}

# have PROGRAM…: whether all of them are there.
have() {
	for program; do
		command -v "$program" >/dev/null || return 1
	done
}

# as_owner COMMAND…: as the user who owns the checkout. git reads no repository of another user.
as_owner() {
	owner=$(stat -c %u "$checkout")
	if [ "$(id -u)" -ne 0 ] || [ "$owner" -eq 0 ]; then
		"$@"
	else
		setpriv --reuid="$owner" --regid="$(stat -c %g "$checkout")" --clear-groups "$@"
	fi
}

# deb_revision SUITE: of the packages that scripts/ci/deb makes. Debian 12 builds with older tools, so its
# packages have a version of their own.
deb_revision() {
	case $1 in
	bookworm) echo 1~deb12u1 ;;
	*) echo 1 ;;
	esac
}
