package mesh

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztmesh/ztmesh/xds"
)

// HTTP2 is a client's connection of HTTP/2 on which requests go out as they are given: no
// client library normalises them. It belongs to one goroutine.
type HTTP2 struct {
	conn   net.Conn
	frames *http2.Framer
	stream uint32 // of the last request
	block  bytes.Buffer
	encode *hpack.Encoder
}

// DialHTTP2 is Dial, and the beginning of HTTP/2.
func (in *Instance) DialHTTP2(port uint32, as *tls.Certificate) (*HTTP2, error) {
	conn, err := in.Dial(port, as, "h2")
	if err != nil {
		return nil, err
	}
	return NewHTTP2(conn)
}

// NewHTTP2 begins HTTP/2 on a connection, which it closes if it cannot.
func NewHTTP2(conn net.Conn) (*HTTP2, error) {
	h := &HTTP2{conn: conn, frames: http2.NewFramer(conn, conn)}
	h.encode = hpack.NewEncoder(&h.block)
	h.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, err := io.WriteString(conn, http2.ClientPreface)
	if err = errors.Join(err, h.frames.WriteSettings()); err != nil {
		conn.Close()
		return nil, err
	}
	return h, nil
}

// RawHTTP2 is Raw over HTTP/2. A request whose stream is reset has status 0.
func (in *Instance) RawHTTP2(port uint32, as *tls.Certificate, method, host, path string) Answer {
	h, err := in.DialHTTP2(port, as)
	if err != nil {
		return in.Ended(err)
	}
	defer h.Close()
	a, err := h.Exchange(method, host, path)
	if err != nil {
		a = in.Ended(err)
	}
	a.From = h.conn.LocalAddr().String()
	return a
}

// Exchange sends a request without a body and reads its answer. A stream that
// the other side resets is an http2.StreamError.
func (h *HTTP2) Exchange(method, host, path string) (Answer, error) {
	return h.Do(true, []hpack.HeaderField{
		{Name: ":method", Value: method},
		{Name: ":scheme", Value: "https"},
		{Name: ":authority", Value: host},
		{Name: ":path", Value: path},
	})
}

// Do is Exchange of any headers, the pseudo headers among them. If the request
// does not end with them, its answer is complete with its headers.
func (h *HTTP2) Do(end bool, headers []hpack.HeaderField) (Answer, error) {
	if err := h.send(end, headers); err != nil {
		return Answer{}, err
	}
	var a Answer
	for {
		f, err := h.frames.ReadFrame()
		if err != nil {
			return Answer{}, err
		}
		if err := h.housekeeping(f); err != nil {
			return Answer{}, err
		}
		if f.Header().StreamID != h.stream {
			continue
		}
		ended := false
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				switch field.Name {
				case ":status":
					a.Status, _ = strconv.Atoi(field.Value)
				case xds.ReasonHeader:
					a.Reason = field.Value
				}
			}
			ended = f.StreamEnded() || !end
		case *http2.DataFrame:
			a.Body += string(f.Data())
			ended = f.StreamEnded()
			if n := f.Header().Length; n > 0 {
				err = h.frames.WriteWindowUpdate(0, n)
			}
		case *http2.RSTStreamFrame:
			return Answer{}, http2.StreamError{StreamID: f.StreamID, Code: f.ErrCode}
		}
		if ended || err != nil {
			return a, err
		}
	}
}

func (h *HTTP2) send(end bool, headers []hpack.HeaderField) error {
	h.stream = max(h.stream+2, 1) | 1
	h.block.Reset()
	for _, field := range headers {
		if err := h.encode.WriteField(field); err != nil {
			return err
		}
	}
	return h.frames.WriteHeaders(http2.HeadersFrameParam{
		StreamID: h.stream, BlockFragment: h.block.Bytes(), EndStream: end, EndHeaders: true,
	})
}

// housekeeping answers what a connection asks of its client. GOAWAY is an error
// only if it says that something was wrong.
func (h *HTTP2) housekeeping(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return h.frames.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return h.frames.WritePing(true, f.Data)
		}
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo {
			return http2.ConnectionError(f.ErrCode)
		}
	}
	return nil
}

// Listen answers pings, and says nothing else, until the connection ends.
func (h *HTTP2) Listen() error {
	for {
		f, err := h.frames.ReadFrame()
		if err != nil {
			return err
		}
		if err := h.housekeeping(f); err != nil {
			return err
		}
	}
}

// Close ends the connection.
func (h *HTTP2) Close() error { return h.conn.Close() }
