// SPDX-License-Identifier: GPL-2.0-only
/*
 * The least that a FUSE file system in C can be: one file, "file", whose text
 * never changes, served past the page cache and in one thread.
 *
 *	constant MOUNTPOINT
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <string.h>
#include <sys/stat.h>

#define NODE 2

static const char text[] = "forks 12345\nexecs 12345\nexits 12345\noom_kills 0\nattaches 1\n";

static int fill(fuse_ino_t node, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = node;
	if (node == FUSE_ROOT_ID) {
		st->st_mode = S_IFDIR | 0555;
		st->st_nlink = 2;
		return 0;
	}
	st->st_mode = S_IFREG | 0444;
	st->st_nlink = 1;
	st->st_size = sizeof(text) - 1;
	return node == NODE ? 0 : -1;
}

static void answer_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = { .ino = NODE, .attr_timeout = 3600, .entry_timeout = 3600 };

	if (parent != FUSE_ROOT_ID || strcmp(name, "file")) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	fill(NODE, &entry.attr);
	fuse_reply_entry(req, &entry);
}

static void answer_getattr(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *file)
{
	struct stat st;

	(void)file;
	if (fill(node, &st))
		fuse_reply_err(req, ENOENT);
	else
		fuse_reply_attr(req, &st, 3600);
}

static void answer_open(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *file)
{
	(void)node;
	file->direct_io = 1;
	fuse_reply_open(req, file);
}

static void answer_read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
			struct fuse_file_info *file)
{
	size_t length = sizeof(text) - 1;

	(void)node;
	(void)file;
	if (offset >= (off_t)length)
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_buf(req, text + offset,
			       size < length - offset ? size : length - offset);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = answer_lookup,
	.getattr = answer_getattr,
	.open = answer_open,
	.read = answer_read,
};

int main(int argc, char **argv)
{
	char *arguments[] = { argv[0], "-o", "fsname=constant,default_permissions", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, arguments);
	struct fuse_session *session;

	if (argc != 2)
		return 2;
	session = fuse_session_new(&args, &operations, sizeof(operations), NULL);
	if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[1]))
		return 1;
	fuse_session_loop(session);
	fuse_session_unmount(session);
	return 0;
}
