package denylist

import (
	"context"
	"errors"
	"io"
	"time"
)

// An Engine keeps one log of messages for a fleet, on a server that is not ours:
// the messages are numbered from 1 without holes, come in at the end, and are
// forgotten from the front. It is not trusted to keep what it promised to keep:
// [Stream] finds out when it did not. All methods may be called by anybody at any
// time; each ends with its context, and comes back to a server that was away.
type Engine interface {
	// Ends says which log there is and what is kept of it. An error says why there is
	// none that could be used, and what to do about it.
	Ends(ctx context.Context) (Ends, error)
	// Read hands on the messages after a number, in order, and waits for more. It
	// ends with the first error of its own or of take, never with nil.
	Read(ctx context.Context, after uint64, take func(number uint64, data []byte) error) error
	// Message is one message; ErrNoMessage if it is not kept.
	Message(ctx context.Context, number uint64) ([]byte, error)
	// Append returns nil once the engine has promised to keep the message. Who may
	// not write records may still be let say where it is (here).
	Append(ctx context.Context, data []byte, here bool) error
	// Snapshot is what SaveSnapshot left last; ErrNoSnapshot if nothing.
	Snapshot(ctx context.Context) (Saved, error)
	// OpenSnapshot reads it, or one that took its place since.
	OpenSnapshot(ctx context.Context) (io.ReadCloser, error)
	// SaveSnapshot keeps a snapshot in the place of the last one.
	SaveSnapshot(ctx context.Context, at Cursor, snapshot io.Reader) error
	// Close gives back connections.
	Close()
}

// What an Engine has not got.
var (
	ErrNoMessage  = errors.New("the message is not kept")
	ErrNoSnapshot = errors.New("there is no snapshot")
)

// Ends are the two ends of an engine's log.
type Ends struct {
	Log         string // tells this log from one that was made anew in its place
	First, Last uint64 // the oldest message that is kept, and the latest; Last is First-1 if there is none
	Missing     uint64 // of those between
}

// A Refusal is a line that whoever it is handed to does not take, now or later.
type Refusal struct {
	Line    []byte
	Problem string
}

// A Cursor is how far an engine's log was read.
type Cursor struct {
	Log    string `json:"log"`
	Number uint64 `json:"n"`
	Hash   Hash   `json:"hash"` // of the message
	// Source is the name under which whoever stood there wrote.
	Source string `json:"src,omitempty"`
}

// Saved is a snapshot that an engine keeps.
type Saved struct {
	At   Cursor // everything up to there is part of it
	Made time.Time
}
