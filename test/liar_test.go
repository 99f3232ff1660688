package test

import (
	"context"
	"encoding/base64"
	"strings"
	"sync"

	"durward/denylist"
)

// A liar is an engine that does not hand on all that it has, and numbers the rest as
// if there were nothing else; or that says something again in the place of what it
// keeps back. What it has is with a real one.
type liar struct {
	denylist.Engine
	*lies
}

// lies are what is not handed on to the followers of one engine.
type lies struct {
	mu   sync.Mutex
	lie  func(data []byte) (instead []byte, told bool) // nil: the truth
	kept []uint64                                      // numbers that were kept back, rising
}

// begin makes it lie, or, with nil, tell the truth about everything.
func (l *lies) begin(lie func(data []byte) (instead []byte, told bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lie = lie
	if lie == nil {
		l.kept = nil
	}
}

// real is the number of what followers know as another.
func (l *lies) real(number uint64) uint64 {
	for _, k := range l.kept {
		if k > number {
			break
		}
		number++
	}
	return number
}

func (l liar) Read(ctx context.Context, after uint64, take func(number uint64, data []byte) error) error {
	l.mu.Lock()
	from := l.real(after+1) - 1
	l.mu.Unlock()
	return l.Engine.Read(ctx, from, func(number uint64, data []byte) error {
		l.mu.Lock()
		told := true
		if l.lie != nil {
			data, told = l.lie(data)
		}
		if !told && (len(l.kept) == 0 || l.kept[len(l.kept)-1] < number) {
			l.kept = append(l.kept, number)
		}
		before := 0
		for _, k := range l.kept {
			if k < number {
				before++
			}
		}
		l.mu.Unlock()
		if !told {
			return nil
		}
		return take(number-uint64(before), data)
	})
}

func (l liar) Ends(ctx context.Context) (denylist.Ends, error) {
	ends, err := l.Engine.Ends(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	ends.Last -= uint64(len(l.kept))
	return ends, err
}

func (l liar) Message(ctx context.Context, number uint64) ([]byte, error) {
	l.mu.Lock()
	number = l.real(number)
	l.mu.Unlock()
	data, err := l.Engine.Message(ctx, number)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lie != nil {
		data, _ = l.lie(data)
	}
	return data, nil
}

func (l liar) Snapshot(ctx context.Context) (denylist.Saved, error) {
	l.mu.Lock()
	lies := l.lie != nil
	l.mu.Unlock()
	if lies {
		return denylist.Saved{}, denylist.ErrNoSnapshot // it would tell
	}
	return l.Engine.Snapshot(ctx)
}

// plain is what a message says, signed or not.
func plain(data []byte) string {
	if parts := strings.Split(string(data), "."); len(parts) == 3 {
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		return string(payload)
	}
	return string(data)
}

func isRecord(data []byte) bool { return strings.Contains(plain(data), `"ops":[`) }

func isSign(data []byte) bool {
	text := plain(data)
	return strings.Contains(text, `"n":`) && !strings.Contains(text, `"ops":[`)
}
