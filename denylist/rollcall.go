package denylist

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Whether a revocation is enforced everywhere is found out by calling the roll, in
// the log itself: whoever wants to know appends a call, and each gateway that reads
// it has read, and enforces, all that stands before it, and says that it read the
// call. That it is at such and such a number was refused as an answer: after a log
// was put back, the same numbers mean something else.
//
//	{"call":"X"}                                                                who is there?
//	{"id":"durward-…","name":"gw-1","lease":5,"t":1790000000000,"read":["X"]}   I am
//
// A gateway says so without having been called, too, every quarter of a minute, so
// that those are missed who do not answer. It vouches for nothing, and so lets
// nobody in, before it has read that it is there itself: so whoever calls the roll
// knows all that could let somebody in. Where records are signed, so is this
// (typ durward-roll).
const (
	rollType    = "durward-roll"
	rollEvery   = 15 * time.Second
	rollKnown   = 45 * time.Second // after this long without having read that it is there, a gateway is in doubt
	rollForgets = 60 * time.Second // and after this long nobody waits for it
	rollMost    = 10_000           // gateways
	mayNot      = 3                // attempts to say that one is there
)

type rollMessage struct {
	Call  string  `json:"call,omitempty"`
	ID    string  `json:"id,omitempty"`
	Name  string  `json:"name,omitempty"`
	Lease float64 `json:"lease,omitempty"` // seconds
	Made  int64   `json:"t,omitempty"`     // in milliseconds, by its own clock
	Holes bool    `json:"holes,omitempty"` // not all that the log says is enforced there
	Left  bool    `json:"left,omitempty"`  // it is about to end
	// Read are the calls that were read there since it last said so.
	Read []string `json:"read,omitempty"`
}

// A rollBook is what a stream knows of who is there. The stream's mutex is for it too.
type rollBook struct {
	members map[string]*member   // by id
	calls   map[string]*rollCall // that are waited for here
	unsaid  []string             // calls that were read and not answered yet
	answer  chan struct{}        // that there are some; holds one
	began   time.Time            // when this gateway began to say that it is there
	read    time.Time            // when it last read that it is
	mute    bool                 // it may not write
}

type member struct {
	rollMessage
	heard  time.Time
	signer string // the key that spoke for it first, and alone may; "" where nothing is signed
}

// A rollCall is who has answered a call, once it was read again here.
type rollCall struct {
	read     bool
	answered map[string]bool // by id; false: with holes
}

const rollUnsaid = 1000 // calls that one answer may name; whoever called waits in vain for the rest

// known is whether this gateway may let others believe that it knows everything.
func (b *rollBook) known(now time.Time) bool { return b.mute || now.Sub(b.read) < rollKnown }

// Enforced is what came of a roll call.
type Enforced struct {
	Gateways  int            `json:"gateways"`
	Confirmed int            `json:"confirmed"`
	Each      []Confirmation `json:"each"`
	Missing   []Missing      `json:"missing"`
}

// A Confirmation is a gateway that enforces what was revoked.
type Confirmation struct {
	Name         string  `json:"name"`
	Milliseconds float64 `json:"ms"` // since the call was made
}

// Missing is a gateway that did not confirm.
type Missing struct {
	Name string `json:"name"`
	// FencedBy is when its lease ends at the latest, unless it comes back and then
	// knows everything. Zero if it is there, and does not enforce all that it is told.
	FencedBy time.Time `json:"fenced_by,omitzero"`
	Problem  string    `json:"problem,omitempty"`
}

// Enforced calls the roll and waits until all gateways have confirmed that they
// enforce what is in the log by now, or the context ends. An error says why nobody
// could be asked.
func (s *Stream) Enforced(ctx context.Context) (Enforced, error) {
	id := rand.Text()
	s.mu.Lock()
	call := &rollCall{answered: map[string]bool{}}
	s.roll.calls[id] = call
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.roll.calls, id)
		s.mu.Unlock()
	}()
	began := time.Now()
	if err := s.say(ctx, rollMessage{Call: id}); err != nil {
		return Enforced{}, fmt.Errorf("call the roll: %w", err)
	}
	asked := time.Now()
	var waited map[string]float64 // when each confirmed; -1: it did not
	for {
		s.mu.Lock()
		if call.read && waited == nil { // all that came before it were read
			waited = map[string]float64{}
			for id := range s.roll.members {
				waited[id] = -1
			}
		}
		left := 0
		for id, at := range waited {
			whole, answered := call.answered[id]
			switch {
			case s.roll.members[id] == nil: // left, or nobody has waited for it for long
				delete(waited, id)
			case at >= 0 || answered && !whole:
			case answered:
				waited[id] = float64(time.Since(began).Microseconds()) / 1000
			default:
				left++
			}
		}
		s.mu.Unlock()
		if waited != nil && left == 0 || !sleep(ctx, time.Millisecond) {
			break
		}
	}
	if waited == nil {
		return Enforced{}, fmt.Errorf("the call was not read again by this gateway within %s: it does not follow the log", time.Since(began).Round(time.Millisecond))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := Enforced{Gateways: len(waited), Each: []Confirmation{}, Missing: []Missing{}}
	for id, at := range waited {
		m := s.roll.members[id]
		_, answered := call.answered[id]
		switch {
		case m == nil:
			e.Gateways--
		case at >= 0:
			e.Confirmed++
			e.Each = append(e.Each, Confirmation{m.Name, at})
		case answered:
			e.Missing = append(e.Missing, Missing{Name: m.Name, Problem: "it follows the feed and refuses some of what it says (issuers that it has not configured, kinds that it does not know, grants, or mass: false)"})
		default:
			// The last sign of life that it can have read was made before the call.
			lease := time.Duration(m.Lease * float64(time.Second))
			e.Missing = append(e.Missing, Missing{Name: m.Name, FencedBy: asked.Add(lease + 2*skew).UTC().Round(time.Millisecond)})
		}
	}
	slices.SortFunc(e.Each, func(a, b Confirmation) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(e.Missing, func(a, b Missing) int { return cmp.Compare(a.Name, b.Name) })
	return e, nil
}

// say appends to the log what is about the roll.
func (s *Stream) say(ctx context.Context, m rollMessage) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	return s.Engine.Append(ctx, signed(text, rollType, s.Key), true)
}

// called takes a message if it is about the roll.
func (s *Stream) called(data []byte, now time.Time) bool {
	var m rollMessage
	var signer string
	switch {
	case bytes.HasPrefix(data, []byte(`{"call"`)), bytes.HasPrefix(data, []byte(`{"id"`)):
		if len(s.Follower.cfg.Keys) > 0 {
			return false // whoever wrote it; the follower counts it as forged
		}
	case bytes.HasPrefix(data, []byte("{")) || !bytes.Contains(data, []byte(".")):
		return false
	default:
		payload, by, err := openJWS(data, rollType, s.Follower.cfg.Keys)
		if err != nil || len(s.Follower.cfg.Keys) == 0 && !bytes.HasPrefix(payload, []byte(`{"call"`)) && !bytes.HasPrefix(payload, []byte(`{"id"`)) {
			return false
		}
		data, signer = payload, by
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if d.Decode(&m) != nil || len(m.Name) > 256 || len(m.ID) > 64 || !(m.Lease >= 0 && m.Lease < 1e6) {
		return false
	}
	m.Name = strings.ToValidUTF8(m.Name, "?")
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.roll
	if m.Call != "" {
		if call := b.calls[m.Call]; call != nil {
			call.read = true
		}
		if len(m.Call) <= 64 && len(b.unsaid) < rollUnsaid && !s.anew && !s.partial && s.current {
			b.unsaid = append(b.unsaid, m.Call)
			select {
			case b.answer <- struct{}{}:
			default: // the answer will name this one too
			}
		}
		return true
	}
	heard := now
	if !s.current { // it was said some time ago
		heard = time.UnixMilli(m.Made)
	}
	for id, o := range b.members {
		if now.Sub(o.heard) > rollForgets {
			delete(b.members, id)
		}
	}
	if o := b.members[m.ID]; o != nil && o.signer != signer && len(s.Follower.cfg.Keys) > 0 {
		s.Logger.Error("a gateway's answer to the roll call was signed by another's key and was dropped", "feed", s.Source.Name(), "gateway", m.Name, "signer", signer, "expected", o.signer)
		return true
	}
	for _, id := range m.Read {
		if call := b.calls[id]; call != nil {
			call.answered[m.ID] = !m.Holes
		}
	}
	m.Read = nil
	switch {
	case m.Left:
		delete(b.members, m.ID)
	case b.members[m.ID] != nil, len(b.members) < rollMost && now.Sub(heard) < rollForgets:
		b.members[m.ID] = &member{m, heard, signer}
	}
	if m.ID == s.at.Source && m.Made >= b.began.UnixMilli() {
		b.read = now
	}
	return true
}

// attend says that this gateway is there, and how far it is, whenever somebody calls.
func (s *Stream) attend(ctx context.Context) {
	failed := 0
	s.mu.Lock()
	s.roll.began = time.Now()
	if s.Key == nil && len(s.Follower.cfg.Keys) > 0 { // nobody would believe it
		s.roll.mute = true
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	t := time.NewTicker(rollEvery)
	defer t.Stop()
	for {
		s.mu.Lock()
		m := rollMessage{ID: s.at.Source, Name: s.Name, Lease: s.Lease.Seconds(), Holes: !s.Follower.Whole(), Made: time.Now().UnixMilli()}
		m.Read, s.roll.unsaid = s.roll.unsaid, nil
		mute := s.roll.mute
		s.mu.Unlock()
		err := s.say(ctx, m)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			failed = 0
		default:
			s.mu.Lock()
			s.roll.unsaid = append(m.Read, s.roll.unsaid...)
			s.mu.Unlock()
			// Whoever may not write cannot be asked, and need not wait to be known.
			if failed++; failed == mayNot && !mute {
				s.mu.Lock()
				s.roll.mute = s.roll.read.IsZero() && s.current
				mute = s.roll.mute
				s.mu.Unlock()
				if mute {
					s.Logger.Warn("this gateway cannot write to the log of revocations that it is there; who waits until a revocation is enforced everywhere does not wait for it", "feed", s.Source.Name(), "error", err)
				}
				failed = 0
			}
		}
		wait := t.C
		if err != nil && !mute {
			wait = time.After(signEvery / 4)
		}
		select {
		case <-ctx.Done():
			if err == nil {
				bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				s.say(bye, rollMessage{ID: m.ID, Left: true})
			}
			return
		case <-wait:
		case <-s.roll.answer:
		}
	}
}
