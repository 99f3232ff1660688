// An upstream that costs as little as one can: a single thread that answers each
// request of each connection with the same 1 KiB, whatever it asks for. Requests have
// no bodies.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE 1024
#define CONNECTIONS 65536

// How many bytes of "\r\n\r\n" each connection has ended with so far.
static unsigned char seen[CONNECTIONS];

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: upstream PORT\n"), 2;
  static char answer[4096];
  int head = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", SIZE);
  memset(answer + head, 'x', SIZE);
  int one = 1, l = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(l, (struct sockaddr *)&at, sizeof at) || listen(l, 4096)) return perror("upstream"), 1;
  int ep = epoll_create1(0);
  struct epoll_event ev = {.events = EPOLLIN, .data.fd = l}, got[256];
  epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev);
  for (;;) {
    int n = epoll_wait(ep, got, 256, -1);
    for (int i = 0; i < n; i++) {
      int fd = got[i].data.fd;
      if (fd == l) {
        fd = accept4(l, 0, 0, SOCK_NONBLOCK);
        if (fd < 0) continue;
        if (fd >= CONNECTIONS) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        seen[fd] = 0;
        ev.data.fd = fd;
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
        continue;
      }
      char b[65536];
      ssize_t r = read(fd, b, sizeof b);
      if (r <= 0) {
        if (r == 0 || errno != EAGAIN) close(fd);
        continue;
      }
      for (ssize_t j = 0; j < r; j++) {
        seen[fd] = b[j] == "\r\n\r\n"[seen[fd]] ? seen[fd] + 1 : b[j] == '\r';
        if (seen[fd] < 4) continue;
        seen[fd] = 0;
        if (write(fd, answer, head + SIZE) != head + SIZE) { close(fd); break; }
      }
    }
  }
}
