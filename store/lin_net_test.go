package store

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// mesh is a network in memory for a bubble of fake time. Each direction of each
// pair of servers is a link of its own, with its own delay, and can be held: what is
// on it arrives when it is let go, as TCP sends again what was lost. A server that
// is down refuses connections; one that is killed resets those that it has.
type mesh struct {
	seed uint64

	mu        sync.Mutex // guards what follows, and the links
	links     map[[2]string]*link
	listeners map[string]*meshListener
	lives     map[string]chan struct{} // of each server; closed when it goes down
	conns     map[*meshConn]bool       // the ends that are open
	dials     uint64
}

// link is one direction between two servers.
type link struct {
	holds   int           // how many faults hold it
	refuses int           // how many faults reset what crosses it
	delay   time.Duration // of each write, and as much again at random
	changed chan struct{} // closed and replaced when holds or refuses change
}

const usualDelay = time.Millisecond

func newMesh(seed uint64) *mesh {
	return &mesh{
		seed: seed, links: map[[2]string]*link{}, listeners: map[string]*meshListener{},
		lives: map[string]chan struct{}{}, conns: map[*meshConn]bool{},
	}
}

// link is called with mu held.
func (m *mesh) link(from, to string) *link {
	l := m.links[[2]string{from, to}]
	if l == nil {
		l = &link{delay: usualDelay, changed: make(chan struct{})}
		m.links[[2]string{from, to}] = l
	}
	return l
}

// change changes one direction.
func (m *mesh) change(from, to string, by func(*link)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.link(from, to)
	by(l)
	close(l.changed)
	l.changed = make(chan struct{})
}

// hold keeps what is sent in one direction from arriving until undo is called.
func (m *mesh) hold(from, to string) (undo func()) {
	m.change(from, to, func(l *link) { l.holds++ })
	return sync.OnceFunc(func() { m.change(from, to, func(l *link) { l.holds-- }) })
}

// sever resets the connections between two servers and refuses new ones.
func (m *mesh) sever(a, b string) (undo func()) {
	m.change(a, b, func(l *link) { l.refuses++ })
	m.reset(func(c *meshConn) bool { return c.local == a && c.remote == b || c.local == b && c.remote == a })
	return sync.OnceFunc(func() { m.change(a, b, func(l *link) { l.refuses-- }) })
}

// slow makes one direction take longer.
func (m *mesh) slow(from, to string, delay time.Duration) (undo func()) {
	m.change(from, to, func(l *link) { l.delay = delay })
	return sync.OnceFunc(func() { m.change(from, to, func(l *link) { l.delay = usualDelay }) })
}

// reset ends connections, and what is on them, at once.
func (m *mesh) reset(which func(*meshConn) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.conns {
		if which(c) {
			delete(m.conns, c)
			c.in.end(errReset)
			c.out.end(errReset)
		}
	}
}

// down resets what a server has, and takes its listener away.
func (m *mesh) down(name string) {
	m.mu.Lock()
	delete(m.listeners, name)
	close(m.lives[name])
	delete(m.lives, name)
	m.mu.Unlock()
	m.reset(func(c *meshConn) bool { return c.local == name || c.remote == name })
}

var (
	errReset   = errors.New("connection reset")
	errRefused = errors.New("connection refused")
)

// listen makes a listener of a server, in the place of the one that it had.
func (m *mesh) listen(name string) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &meshListener{name: name, conns: make(chan net.Conn), closed: make(chan struct{})}
	m.listeners[name] = l
	m.lives[name] = make(chan struct{})
	return l
}

type meshListener struct {
	name   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *meshListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *meshListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *meshListener) Addr() net.Addr { return address(l.name) }

// dialFrom is how a server connects in the life that has begun with listen: once both
// directions let something through.
func (m *mesh) dialFrom(from string) func(context.Context, string) (net.Conn, error) {
	m.mu.Lock()
	life := m.lives[from]
	m.mu.Unlock()
	return func(ctx context.Context, to string) (net.Conn, error) {
		for {
			m.mu.Lock()
			there, back := m.link(from, to), m.link(to, from)
			held, refused := there.holds+back.holds > 0, there.refuses+back.refuses > 0
			thereChanged, backChanged := there.changed, back.changed
			trip := there.delay + back.delay
			l := m.listeners[to]
			m.mu.Unlock()
			if held {
				select {
				case <-thereChanged:
				case <-backChanged:
				case <-life:
					return nil, errReset
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				continue
			}
			select {
			case <-time.After(trip):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if refused || l == nil {
				return nil, errRefused
			}
			here, peer := m.connect(from, to)
			select {
			case l.conns <- peer:
				return here, nil
			case <-l.closed:
				return nil, errors.Join(errRefused, here.Close(), peer.Close())
			case <-life:
				return nil, errors.Join(errReset, here.Close(), peer.Close())
			case <-ctx.Done():
				return nil, errors.Join(ctx.Err(), here.Close(), peer.Close())
			}
		}
	}
}

// connect makes both ends of a connection.
func (m *mesh) connect(from, to string) (here, peer *meshConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dials++
	there := newStream(m, from, to, rand.New(rand.NewPCG(m.seed, 2*m.dials)))
	back := newStream(m, to, from, rand.New(rand.NewPCG(m.seed, 2*m.dials+1)))
	here = &meshConn{mesh: m, local: from, remote: to, in: back, out: there}
	peer = &meshConn{mesh: m, local: to, remote: from, in: there, out: back}
	m.conns[here], m.conns[peer] = true, true
	return here, peer
}

// meshConn is one end of a connection.
type meshConn struct {
	mesh          *mesh
	local, remote string
	in, out       *stream
}

func (c *meshConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *meshConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *meshConn) LocalAddr() net.Addr         { return address(c.local) }
func (c *meshConn) RemoteAddr() net.Addr        { return address(c.remote) }

// Close lets what was written arrive.
func (c *meshConn) Close() error {
	c.mesh.mu.Lock()
	delete(c.mesh.conns, c)
	c.mesh.mu.Unlock()
	c.in.end(net.ErrClosed)
	c.out.finish()
	return nil
}

func (c *meshConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *meshConn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.readBy = t })
	return nil
}

func (c *meshConn) SetWriteDeadline(t time.Time) error {
	c.out.change(func() { c.out.writeBy = t })
	return nil
}

// stream is one direction of a connection.
type stream struct {
	mesh     *mesh
	from, to string

	mu              sync.Mutex // guards what follows; mesh.mu may be held, and is never taken under it
	random          *rand.Rand
	packets         []packet
	queued          int
	last            time.Time // when the newest packet arrives
	over            error     // nothing is read or written any more
	finished        bool      // nothing is written any more
	readBy, writeBy time.Time
	changed         chan struct{} // closed and replaced when something above changes
}

type packet struct {
	at   time.Time
	data []byte
}

// window is how much may be under way.
const window = 1 << 20

func newStream(m *mesh, from, to string, random *rand.Rand) *stream {
	return &stream{mesh: m, from: from, to: to, random: random, changed: make(chan struct{})}
}

func (s *stream) change(by func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by()
	s.wake()
}

func (s *stream) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *stream) end(why error) {
	s.change(func() {
		if s.over == nil {
			s.over = why
		}
	})
}

func (s *stream) finish() { s.change(func() { s.finished = true }) }

// linkState is asked before mu is taken.
func (s *stream) linkState() (held bool, delay time.Duration, changed <-chan struct{}) {
	s.mesh.mu.Lock()
	defer s.mesh.mu.Unlock()
	l := s.mesh.link(s.from, s.to)
	return l.holds > 0, l.delay, l.changed
}

func (s *stream) read(p []byte) (int, error) {
	for {
		held, _, linkChanged := s.linkState()
		s.mu.Lock()
		now := time.Now()
		due := s.readBy
		switch arrived := len(s.packets) > 0 && !held && !s.packets[0].at.After(now); {
		case s.over != nil:
			defer s.mu.Unlock()
			return 0, s.over
		case arrived:
			defer s.mu.Unlock()
			return s.take(p), nil
		case len(s.packets) == 0 && s.finished && !held:
			defer s.mu.Unlock()
			return 0, io.EOF
		case !due.IsZero() && !now.Before(due):
			defer s.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(s.packets) > 0 && !held && (due.IsZero() || s.packets[0].at.Before(due)):
			due = s.packets[0].at
		}
		changed := s.changed
		s.mu.Unlock()
		waitUntil(due, changed, linkChanged)
	}
}

// take is called with mu held, when the first packet is there.
func (s *stream) take(p []byte) int {
	n := copy(p, s.packets[0].data)
	if s.packets[0].data = s.packets[0].data[n:]; len(s.packets[0].data) == 0 {
		s.packets = s.packets[1:]
	}
	if s.queued -= n; s.queued+n >= window {
		s.wake()
	}
	return n
}

func (s *stream) write(p []byte) (int, error) {
	for {
		_, delay, _ := s.linkState()
		s.mu.Lock()
		now := time.Now()
		switch {
		case s.over != nil:
			defer s.mu.Unlock()
			return 0, s.over
		case s.finished:
			defer s.mu.Unlock()
			return 0, net.ErrClosed
		case !s.writeBy.IsZero() && !now.Before(s.writeBy):
			defer s.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case s.queued < window:
			defer s.mu.Unlock()
			at := now.Add(delay + time.Duration(s.random.Int64N(int64(delay))))
			if at.Before(s.last) {
				at = s.last
			}
			s.last = at
			s.packets = append(s.packets, packet{at: at, data: append([]byte(nil), p...)})
			s.queued += len(p)
			s.wake()
			return len(p), nil
		}
		due, changed := s.writeBy, s.changed
		s.mu.Unlock()
		waitUntil(due, changed, nil)
	}
}

func waitUntil(due time.Time, a, b <-chan struct{}) {
	var timer <-chan time.Time
	if !due.IsZero() {
		t := time.NewTimer(time.Until(due))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-a:
	case <-b:
	case <-timer:
	}
}
