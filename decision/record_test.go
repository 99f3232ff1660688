package decision

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// FuzzAppendJSON: the line that is put together by hand is JSON, is one line, and says
// what slog would say.
func FuzzAppendJSON(f *testing.F) {
	f.Add("id-1", "/a b/\"\\\x00\n\xff\u2028<é>", "alice", "why", int64(7), byte(4))
	f.Add("", "", "", "", int64(-1), byte(0))
	f.Fuzz(func(t *testing.T, id, path, subject, detail string, number int64, kind byte) {
		r := &Record{ID: id, TraceID: detail, Generation: uint64(number), Method: id, Host: subject, Path: path, Route: path, Grant: id, Issuer: subject, Subject: subject,
			Session: detail, TokenID: id, Verdict: Verdict(kind % 3), Reason: Reason(detail), Shadow: Reason(id), Detail: detail, Upstream: subject, Status: int(kind), Bytes: number,
			Cut: path, Decided: time.Duration(number), Waited: time.Duration(kind), Took: -time.Duration(number)}
		switch kind % 3 {
		case 1:
			r.Client = netip.AddrFrom4([4]byte{192, 0, 2, kind})
		case 2:
			r.Client = netip.MustParseAddr("fe80::1%eth0")
		}
		got := r.AppendJSON(nil)
		var want bytes.Buffer
		slog.New(slog.NewJSONHandler(&want, nil)).Info("request", "decision", r)
		var a map[string]any
		var b struct{ Decision map[string]any }
		if err := json.Unmarshal(got, &a); err != nil {
			t.Fatalf("%v: %s", err, got)
		}
		if err := json.Unmarshal(want.Bytes(), &b); err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(got, "\n\r") || !reflect.DeepEqual(a, b.Decision) {
			t.Errorf("got  %s\nwant %s", got, want.Bytes())
		}
	})
}
