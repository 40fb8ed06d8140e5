// SPDX-License-Identifier: MIT
// C's own streams on top of a TCP stream: libc reads and writes behind everybody's back. `NAME list` prints the cases.
#include <err.h>
#include <stdarg.h>

#include "case_tools.h"

using namespace testlib;

namespace {

FILE* open_stream(int fd, const char* mode) {
  FILE* stream = fdopen(fd, mode);
  CHECK(stream != nullptr);
  return stream;
}

void ask_lines(FILE* out, FILE* in, int from, int count) {
  for (int i = from; i < from + count; i++) {
    char line[32];
    CHECK(fprintf(out, "line %d\n", i) > 0);
    CHECK_EQ(fflush(out), 0);
    CHECK(fgets(line, sizeof line, in) != nullptr);
    CHECK_EQ(atoi(line + 5), i);
  }
}

void ask_line(int out, int in, const char* line) {
  send_all(out, line, strlen(line));
  char got[64] = {};
  recv_all(in, got, strlen(line));
  CHECK_EQ(strcmp(got, line), 0);
}

void read_client(int fd, const Sync& sync) {
  FILE* in = open_stream(dup(fd), "r");
  for (int i = 0; i < 50; i++) {
    char line[32], got[32];
    snprintf(line, sizeof line, "line %d\n", i);
    send_all(fd, line, strlen(line));
    CHECK(fgets(got, sizeof got, in) != nullptr);
    CHECK_EQ(strcmp(got, line), 0);
  }
  CHECK_EQ(fclose(in), 0);
  uint64_t offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

void write_client(int fd, const Sync& sync) {
  FILE* out = open_stream(dup(fd), "w");
  for (int i = 0; i < 50; i++) {
    char line[32] = {}, got[32] = {};
    const int n = snprintf(line, sizeof line, "line %d\n", i);
    CHECK(fputs(line, out) >= 0);
    CHECK_EQ(fflush(out), 0);
    recv_all(fd, got, static_cast<size_t>(n));
    CHECK_EQ(strcmp(got, line), 0);
  }
  CHECK_EQ(fclose(out), 0);
  uint64_t offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

// One FILE for both directions, on the descriptor itself; fclose is the close.
void update_client(int fd, const Sync& sync) {
  FILE* both = open_stream(fd, "r+");
  ask_lines(both, both, 0, 50);
  CHECK_EQ(fclose(both), 0);
  CHECK_ERRNO(close(fd), EBADF);
  sync.wait();  // the echo has seen the end
}

// fclose sends what is still in the buffer, and then the end.
void fclose_client(int fd, const Sync& sync) {
  const int second = dup(fd);
  FILE* out = open_stream(fd, "w");
  CHECK(fputs("not flushed", out) >= 0);
  CHECK_EQ(fclose(out), 0);
  char got[16] = {};
  recv_all(second, got, 11);
  CHECK_EQ(strcmp(got, "not flushed"), 0);
  finish(second, sync);
}

// fclose with bytes unread is a reset, as close is.
void fclose_unread_client(int fd, const Sync& sync) {
  FILE* in = open_stream(fd, "r");
  setvbuf(in, nullptr, _IONBF, 0);
  sync.wait();
  CHECK_EQ(fgetc(in), pattern_byte(kDown, 0));  // the others are unread
  CHECK_EQ(fclose(in), 0);
  sync.post();
}

void fclose_unread_server(int fd, const Sync& sync) {
  send_pattern(fd, kDown, 0, kUnread);
  sync.post();
  sync.wait();
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
  close(fd);
}

int vprint(int fd, const char* format, ...) {
  va_list list;
  va_start(list, format);
  const int n = vdprintf(fd, format, list);
  va_end(list);
  return n;
}

void dprintf_client(int fd, const Sync& sync) {
  char got[32] = {};
  for (int i = 0; i < 20; i++) {
    CHECK_EQ(dprintf(fd, "dprintf %02d\n", i), 11);
    recv_all(fd, got, 11);
    CHECK_EQ(atoi(got + 8), i);
    CHECK_EQ(vprint(fd, "vdprintf %02d\n", i), 12);
    recv_all(fd, got, 12);
    CHECK_EQ(atoi(got + 9), i);
    ask_line(fd, fd, "send\n");
  }
  uint64_t offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

// Bytes that are unread when the FILE is made: some are taken by recv, the rest by fgets.
void after_recv_client(int fd, const Sync& sync) {
  const char text[] = "first\nsecond\nthird\n";
  send_all(fd, text, sizeof text - 1);
  wait_readable(fd);
  char start[4] = {};
  recv_all(fd, start, 3);
  CHECK_EQ(strcmp(start, "fir"), 0);
  FILE* in = open_stream(dup(fd), "r");
  char line[32];
  const char* const lines[] = {"st\n", "second\n", "third\n"};
  for (const char* want : lines) {
    CHECK(fgets(line, sizeof line, in) != nullptr);
    CHECK_EQ(strcmp(line, want), 0);
  }
  CHECK_EQ(fclose(in), 0);
  uint64_t offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

// Unbuffered, so that what the FILE leaves can be taken by recv, and the other way round.
void mixed_client(int fd, const Sync& sync) {
  FILE* in = open_stream(dup(fd), "r");
  FILE* out = open_stream(dup(fd), "w");
  setvbuf(in, nullptr, _IONBF, 0);
  setvbuf(out, nullptr, _IONBF, 0);
  for (int i = 0; i < 20; i++) {
    char got[16] = {};
    CHECK(fputs("abc", out) >= 0);
    send_all(fd, "def", 3);
    CHECK_EQ(fputc('g', out), 'g');
    CHECK_EQ(fgetc(in), 'a');
    recv_all(fd, got, 2);
    CHECK_EQ(fread(got + 2, 1, 3, in), 3);
    recv_all(fd, got + 5, 1);
    CHECK_EQ(strcmp(got, "bcdefg"), 0);
  }
  CHECK_EQ(fclose(in), 0);
  CHECK_EQ(fclose(out), 0);
  uint64_t offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

// More than the smallest rings hold, in one fwrite and one fread.
void large_client(int fd, const Sync& sync) {
  static char sent[60000], got[60000];
  FILE* in = open_stream(dup(fd), "r");
  FILE* out = open_stream(dup(fd), "w");
  for (int i = 0; i < 5; i++) {
    pattern_fill(sent, sizeof sent, kUp, static_cast<uint64_t>(i));
    CHECK_EQ(fwrite(sent, 1, sizeof sent, out), sizeof sent);
    CHECK_EQ(fflush(out), 0);
    CHECK_EQ(fread(got, 1, sizeof got, in), sizeof got);
    CHECK(memcmp(sent, got, sizeof sent) == 0);
  }
  CHECK_EQ(fclose(in), 0);
  CHECK_EQ(fclose(out), 0);
  finish(fd, sync);
}

void getline_client(int fd, const Sync& sync) {
  FILE* in = open_stream(dup(fd), "r");
  FILE* out = open_stream(dup(fd), "w");
  char* line = nullptr;
  size_t size = 0;
  int number = 0;
  char word[16];
  for (int i = 0; i < 20; i++) {
    CHECK(fprintf(out, "word %d\nnext line\n", i) > 0);
    CHECK_EQ(fflush(out), 0);
    CHECK_EQ(fscanf(in, "%15s %d\n", word, &number), 2);
    CHECK_EQ(number, i);
    CHECK_EQ(getline(&line, &size, in), 10);
  }
  free(line);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  CHECK_EQ(fgetc(in), EOF);
  CHECK(feof(in) != 0 && ferror(in) == 0);
  CHECK_EQ(fclose(in), 0);
  CHECK_EQ(fclose(out), 0);
  CHECK_EQ(close(fd), 0);
  sync.wait();
}

// The FILEs that exist already come to the stream by dup2, as in every inetd service.
void standard_client(int fd, const Sync& sync) {
  int saved[3];
  for (int i = 0; i < 3; i++) CHECK((saved[i] = fcntl(i, F_DUPFD, 50)) >= 50);
  for (int i = 0; i < 3; i++) CHECK_EQ(dup2(fd, i), i);
  char line[64] = {};
  printf("printf\n");
  fflush(stdout);
  CHECK(fgets(line, sizeof line, stdin) != nullptr);
  const bool out_right = strcmp(line, "printf\n") == 0;
  warnx("warning");  // "NAME: warning"
  CHECK(fgets(line, sizeof line, stdin) != nullptr);
  const bool error_right = strstr(line, ": warning\n") != nullptr;
  for (int i = 0; i < 3; i++) CHECK_EQ(dup2(saved[i], i), i);
  CHECK(out_right && error_right);
  uint64_t offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

// A FILE on the stream in a child that shares it.
void child_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const pid_t child = fork_checked();
  if (child == 0) {
    FILE* in = open_stream(dup(fd), "r");
    FILE* out = open_stream(dup(fd), "w");
    ask_lines(out, in, 0, 20);
    _exit(7);
  }
  CHECK_EQ(reap(child), 7);
  exchange(fd, &offset);
  finish(fd, sync);
}

const Case kCases[] = {
    {"read", echo_server, read_client},
    {"write", echo_server, write_client},
    {"update", echo_server, update_client},
    {"fclose", echo_server, fclose_client},
    {"fclose_unread", fclose_unread_server, fclose_unread_client},
    {"dprintf", echo_server, dprintf_client},
    {"after_recv", echo_server, after_recv_client},
    {"mixed", echo_server, mixed_client},
    {"large", echo_server, large_client},
    {"getline", echo_server, getline_client},
    {"standard", echo_server, standard_client},
    {"child", echo_server, child_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
