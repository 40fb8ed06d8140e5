// SPDX-License-Identifier: MIT
// requests PORT N: N GET requests over one connection to 127.0.0.1, for images without Python. Prints "N good answers".
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char kRequest[] = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";
static const char kBody[] = "\r\n\r\nhello\n";

static int connect_soon(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (int tries = 0; tries < 300; ++tries) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr*)&address, sizeof address) == 0) return fd;
    close(fd);
    usleep(100000);
  }
  return -1;
}

static int answer_is_good(int fd) {
  char text[4096];
  size_t size = 0;
  while (size < sizeof text - 1) {
    ssize_t n = recv(fd, text + size, sizeof text - 1 - size, 0);
    if (n <= 0) return 0;
    size += (size_t)n;
    text[size] = '\0';
    if (strstr(text, kBody) != NULL) return 1;
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  int fd = connect_soon(atoi(argv[1]));
  int good = 0;
  for (int i = 0; fd >= 0 && i < atoi(argv[2]); ++i) {
    if (send(fd, kRequest, sizeof kRequest - 1, 0) != (ssize_t)sizeof kRequest - 1) break;
    good += answer_is_good(fd);
  }
  const char* preload = getenv("LD_PRELOAD");
  printf("%d good answers, LD_PRELOAD is %s\n", good, preload != NULL ? preload : "not set");
  return good == atoi(argv[2]) ? 0 : 1;
}
