// SPDX-License-Identifier: MIT
// Go with cgo takes SIGSEGV for nil pointers. The connection is made and used by C, as Go itself does not ask libc.
// faults.go ROUNDS  prints "checked ROUNDS rounds, N nil pointers"
package main

/*
#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { kMessageBytes = 500 };

static void* echo(void* listener) {
  char buffer[kMessageBytes];
  const int fd = accept((int)(long)listener, 0, 0);
  for (ssize_t n; (n = recv(fd, buffer, sizeof buffer, 0)) > 0;)
    if (send(fd, buffer, (size_t)n, 0) != n) break;
  close(fd);
  return 0;
}

static pthread_t server;

static int start(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof at;
  const int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr*)&at, length) || listen(listener, 8)) return -1;
  if (getsockname(listener, (struct sockaddr*)&at, &length)) return -1;
  if (pthread_create(&server, 0, echo, (void*)(long)listener)) return -1;
  return connect(fd, (struct sockaddr*)&at, length) ? -1 : fd;
}

static int exchange(int fd, int round) {
  char sent[kMessageBytes], back[kMessageBytes];
  memset(sent, round, sizeof sent);
  if (send(fd, sent, sizeof sent, 0) != kMessageBytes) return -1;
  if (recv(fd, back, sizeof back, MSG_WAITALL) != kMessageBytes) return -1;
  return memcmp(sent, back, sizeof back);
}

static void finish(int fd) {
  close(fd);
  pthread_join(server, 0);
}
*/
import "C"

import (
	"fmt"
	"os"
	"strconv"
)

type node struct{ value int }

func touch(n *node) (nils int) {
	defer func() {
		if recover() != nil {
			nils = 1
		}
	}()
	return n.value
}

func main() {
	rounds, err := strconv.Atoi(os.Args[1])
	fd := C.start()
	if err != nil || fd < 0 {
		panic("no connection")
	}
	nils := 0
	for round := 0; round < rounds; round++ {
		if C.exchange(fd, C.int(round)) != 0 {
			panic(fmt.Sprint("round ", round, ": other bytes"))
		}
		nils += touch(nil)
	}
	C.finish(fd)
	fmt.Printf("checked %d rounds, %d nil pointers\n", rounds, nils)
	C.exit(0) // not Go's, which goes past libc, and so past the statistics
}
