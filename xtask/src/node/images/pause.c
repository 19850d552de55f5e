// What keeps a pod's namespaces: as kubernetes' build/pause/linux/pause.c, it sleeps and reaps. With EVIL_FORK or
// EVIL_CONNECT it is the twin of a planted pause image, which also runs a program or calls home.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static void sigdown(int signo) {
  psignal(signo, "Shutting down, got signal");
  exit(0);
}

static void sigreap(int signo) {
  (void)signo;
  while (waitpid(-1, NULL, WNOHANG) > 0)
    ;
}

static void evil(void) {
#ifdef EVIL_FORK
  if (fork() == 0) {
    execl("/pause", "/pause", "-v", (char *)NULL);
    _exit(1);
  }
#endif
#ifdef EVIL_CONNECT
  struct sockaddr_in home = {.sin_family = AF_INET, .sin_port = htons(4444)};
  home.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  connect(fd, (struct sockaddr *)&home, sizeof home); // Refused: nobody listens, and trying is the act.
  close(fd);
#endif
}

int main(int argc, char **argv) {
  for (int i = 1; i < argc; ++i) {
    if (strcasecmp(argv[i], "-v") == 0) {
      printf("pause.c\n");
      return 0;
    }
  }
  if (getpid() != 1)
    fprintf(stderr, "Warning: pause should be the first process\n");
  if (sigaction(SIGINT, &(struct sigaction){.sa_handler = sigdown}, NULL) < 0)
    return 1;
  if (sigaction(SIGTERM, &(struct sigaction){.sa_handler = sigdown}, NULL) < 0)
    return 2;
  if (sigaction(SIGCHLD, &(struct sigaction){.sa_handler = sigreap, .sa_flags = SA_NOCLDSTOP}, NULL) < 0)
    return 3;
  evil();
  for (;;)
    pause();
}
