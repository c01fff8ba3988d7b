// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * physview for the documented commands in guests: has command_server.py run it
 * in a fork, at the socket that PHYSVIEW_TEST_SERVER names.
 */
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_SIZE (128 << 10)

extern char **environ;

static char message[MAX_SIZE];
static size_t size;

static void add(const char *word)
{
	size_t length = strlen(word);

	if (size + length + 1 > sizeof(message))
		errx(125, "the command line is too long");
	if (size)
		message[size++] = '\0';
	memcpy(message + size, word, length);
	size += length;
}

static void send_all(int fd)
{
	int fds[] = { 0, 1, 2 };
	union {
		char bytes[CMSG_SPACE(sizeof(fds))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec part = { message, size };
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct cmsghdr *passed = CMSG_FIRSTHDR(&header);

	passed->cmsg_level = SOL_SOCKET;
	passed->cmsg_type = SCM_RIGHTS;
	passed->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(passed), fds, sizeof(fds));
	if (sendmsg(fd, &header, 0) < 0)
		err(125, "cannot send the command");
}

/* The number of the process, then its exit code or minus its signal. */
static int receive(int fd)
{
	char text[32];
	ssize_t length = recv(fd, text, sizeof(text) - 1, 0);

	if (length <= 0)
		errx(125, "the server of commands has ended");
	text[length] = '\0';
	return atoi(text);
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *path = getenv("PHYSVIEW_TEST_SERVER");
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	char number[16], *folder = getcwd(NULL, 0);
	int code;

	if (!path || !folder || strlen(path) >= sizeof(address.sun_path))
		errx(125, "PHYSVIEW_TEST_SERVER names no socket");
	strcpy(address.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		err(125, "%s", path);
	snprintf(number, sizeof(number), "%d", argc - 1);
	add(folder);
	add("");
	add(number);
	for (int i = 1; i < argc; i++)
		add(argv[i]);
	for (char **each = environ; *each; each++)
		add(*each);
	send_all(fd);
	receive(fd);
	/* A pipe ends when the command closes it, not when this process does.
	 */
	close(0);
	close(1);
	close(2);
	code = receive(fd);
	if (code < 0) {
		signal(-code, SIG_DFL);
		raise(-code);
	}
	return code;
}
