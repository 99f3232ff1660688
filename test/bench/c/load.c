// A load generator: a single thread that sends prepared requests over connections
// that it keeps alive, and tells how long the answers took. In a closed loop each
// connection sends its next request when it has its answer. In an open loop
// requests are due at a fixed rate whatever the answers do, and a latency counts
// from when its request was due, not from when a connection was free for it.
//
//   load PORT CONNECTIONS SECONDS RATE STATUS BODY FILE
//
// RATE 0 is the closed loop. STATUS and BODY are what each answer must be: anything
// else is counted as wrong (STATUS 0: 401 or 503; BODY -1: any). FILE holds requests, each behind its
// length as four bytes, little end first; they are sent in turn, over and over, or
// once if SECONDS is 0. Prints JSON, latencies in microseconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct connection {
  int fd, used;
  char in[65536];
  int have;      // bytes in there
  long left;     // of the answer's body; -1: the header is not complete
  int64_t since; // from when the latency counts
};

static char *text;
static struct request { char *at; uint32_t size; } *requests;
static int count, next, port, ep, status;
static long body, sent, answered, wrong, broken, opened;
static int64_t *took;
static long most;

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) { perror(what); exit(1); }

static void dial(struct connection *c) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1;
  if ((c->fd = socket(AF_INET, SOCK_STREAM, 0)) < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev)) die("epoll");
  c->used = c->have = 0;
  c->left = -1;
  opened++;
}

static void redial(struct connection *c) { close(c->fd); dial(c); }

static void ask(struct connection *c, int64_t since) {
  struct request *r = &requests[next];
  next = (next + 1) % count;
  c->since = since;
  c->used = 1;
  sent++;
  for (uint32_t done = 0; done < r->size;) {
    ssize_t n = write(c->fd, r->at + done, r->size - done);
    if (n < 0) { broken++; redial(c); return; }
    done += n;
  }
}

// answer reads what there is; 1 once the answer is complete.
static int answer(struct connection *c) {
  ssize_t n = read(c->fd, c->in + c->have, sizeof c->in - 1 - c->have);
  if (n <= 0) {
    if (c->used) broken++;
    int was = c->used;
    redial(c);
    return was;
  }
  c->have += n;
  if (c->left < 0) {
    c->in[c->have] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    long size = length && length < end ? atol(length + 17) : 0;
    int got = atoi(c->in + 9);
    if ((status ? got != status : got != 401 && got != 503) || (body >= 0 && size != body)) {
      if (!wrong++) fprintf(stderr, "a wrong answer:\n%.*s\n", (int)(end - c->in), c->in);
    }
    c->left = size;
    c->have -= end + 4 - c->in;
  }
  c->left -= c->have;
  c->have = 0;
  if (c->left > 0) return 0;
  c->left = -1;
  c->used = 0;
  if (answered < most) took[answered] = now() - c->since;
  answered++;
  return 1;
}

static int order(const void *a, const void *b) {
  int64_t x = *(int64_t *)a, y = *(int64_t *)b;
  return x < y ? -1 : x > y;
}

static double at(double part) {
  long n = answered < most ? answered : most;
  return n ? took[(long)(part * (n - 1))] / 1e3 : 0;
}

int main(int argc, char **argv) {
  if (argc != 8) return fprintf(stderr, "usage: load PORT CONNECTIONS SECONDS RATE STATUS BODY FILE\n"), 2;
  port = atoi(argv[1]);
  int connections = atoi(argv[2]);
  double seconds = atof(argv[3]), rate = atof(argv[4]);
  status = atoi(argv[5]), body = atol(argv[6]);
  FILE *f = fopen(argv[7], "r");
  if (!f) die(argv[7]);
  fseek(f, 0, SEEK_END);
  long size = ftell(f);
  rewind(f);
  text = malloc(size);
  if (fread(text, 1, size, f) != (size_t)size) die(argv[7]);
  requests = malloc(size / 4 * sizeof *requests);
  for (long i = 0; i + 4 <= size;) {
    uint32_t n;
    memcpy(&n, text + i, 4);
    requests[count++] = (struct request){text + i + 4, n};
    i += 4 + n;
  }
  most = 4000000;
  took = malloc(most * sizeof *took);
  ep = epoll_create1(0);
  struct connection *all = calloc(connections, sizeof *all);
  for (int i = 0; i < connections; i++) dial(&all[i]);
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event ev = {.events = EPOLLIN, .data.ptr = 0}, got[256];
  epoll_ctl(ep, EPOLL_CTL_ADD, timer, &ev);

  int64_t began = now(), end = seconds ? began + seconds * 1e9 : INT64_MAX, last = began;
  long goal = seconds ? INT64_MAX : count;
  long due = 0; // requests of the open loop that were sent
  // A stack of connections that wait for something to do.
  struct connection **idle = malloc(connections * sizeof *idle);
  int waiting = 0;
  for (int i = 0; i < connections; i++) {
    if (rate) idle[waiting++] = &all[i];
    else if (sent < goal) ask(&all[i], now());
  }
  for (;;) {
    int64_t t = now();
    if (t >= end || answered + broken >= goal || (rate && t >= end)) break;
    if (rate) {
      int64_t when;
      while (waiting && (when = began + (int64_t)(due * 1e9 / rate)) <= t) {
        due++;
        ask(idle[--waiting], when);
      }
      when = began + (int64_t)(due * 1e9 / rate);
      struct itimerspec its = {.it_value = {when / 1000000000, when % 1000000000}};
      if (waiting) timerfd_settime(timer, TFD_TIMER_ABSTIME, &its, 0);
    }
    int n = epoll_wait(ep, got, 256, 100);
    for (int i = 0; i < n; i++) {
      struct connection *c = got[i].data.ptr;
      if (!c) {
        uint64_t fired;
        if (read(timer, &fired, sizeof fired) < 0) continue;
        continue;
      }
      if (!answer(c)) continue;
      last = now();
      if (rate) idle[waiting++] = c;
      else if (sent < goal) ask(c, now());
    }
  }
  double ran = ((seconds ? now() : last) - began) / 1e9;
  long n = answered < most ? answered : most;
  qsort(took, n, sizeof *took, order);
  printf("{\"requests\":%ld,\"seconds\":%.6f,\"wrong\":%ld,\"broken\":%ld,\"opened\":%ld,\"due\":%ld,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}\n",
         answered, ran, wrong, broken, opened, due, at(.5), at(.99), at(1));
}
