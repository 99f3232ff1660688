package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// A manager is systemd, or who speaks as it does: it may hand over sockets that it
// listens on (sd_listen_fds), and is told how the process is (sd_notify).
type manager struct {
	sockets []net.Listener // handed over and not asked for yet
}

// newManager takes over the sockets.
func newManager() (*manager, error) {
	sockets, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take over sockets (LISTEN_FDS): %w", err)
	}
	m := &manager{}
	for _, l := range sockets {
		if l != nil { // one that is no listener, which is not for us
			m.sockets = append(m.sockets, l)
		}
	}
	return m, nil
}

// listener is the socket that was handed over for an address of the configuration;
// nil if there is none.
func (m *manager) listener(address string) net.Listener {
	for i, l := range m.sockets {
		if sameAddress(l.Addr(), address) {
			m.sockets = append(m.sockets[:i:i], m.sockets[i+1:]...)
			return l
		}
	}
	return nil
}

func sameAddress(a net.Addr, address string) bool {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return a.Network() == "unix" && a.String() == strings.TrimPrefix(path, "//")
	}
	tcp, ok := a.(*net.TCPAddr)
	host, port, err := net.SplitHostPort(address)
	if !ok || err != nil || port != strconv.Itoa(tcp.Port) {
		return false
	}
	ip := net.ParseIP(host)
	return ip.Equal(tcp.IP) || host == "" && tcp.IP.IsUnspecified() || host == "localhost" && tcp.IP.IsLoopback()
}

// unused is an error that names the sockets that no address of the configuration
// asked for: somebody connects there, and would wait for ever.
func (m *manager) unused() error {
	if len(m.sockets) == 0 {
		return nil
	}
	var names []string
	for _, l := range m.sockets {
		names = append(names, l.Addr().String())
	}
	return fmt.Errorf("sockets were handed over that no address of the configuration is for: %s; write the same under listen, admin, health or denylist.serve_feed.listen", strings.Join(names, ", "))
}

// tell says how the process is, if somebody asked (NOTIFY_SOCKET). Nothing depends on
// whether it is heard.
func (m *manager) tell(states ...string) { daemon.SdNotify(false, strings.Join(states, "\n")) }

// reloading is what systemd wants to hear when a reload begins: until READY, it
// waits.
func (m *manager) reloading() { m.tell(daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec()) }
