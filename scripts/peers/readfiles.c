// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The floor in scripts/bench of what reads text in /proc: it reads files and
 * ignores what it read. Files that cannot be read are left out.
 *
 * Usage: readfiles NAME [PID...]: /proc/PID/NAME of these or of all processes
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char buffer[1 << 16];

static void read_file(const char *pid, const char *name)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/%s", pid, name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return;
	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

int main(int argc, char **argv)
{
	const struct dirent *entry;
	DIR *folder;

	if (argc < 2)
		return 2;
	for (int i = 2; i < argc; i++)
		read_file(argv[i], argv[1]);
	if (argc > 2)
		return 0;
	folder = opendir("/proc");
	if (!folder)
		return 1;
	while ((entry = readdir(folder)))
		if (strspn(entry->d_name, "0123456789") ==
		    strlen(entry->d_name))
			read_file(entry->d_name, argv[1]);
	closedir(folder);
	return 0;
}
