// Package natsfeed keeps the log of a [denylist.Stream] in a stream of NATS
// JetStream.
//
// It is a plain stream, not a key-value bucket: that one has no number without
// holes by which a missing message would show, and its memory grows with what is in
// it. Nothing is ever taken out of the middle; the server forgets from the front,
// by age, and when it is full it refuses what is new, loudly, instead of dropping
// the oldest revocation. What the server and its client do not tell (a consumer
// whose place lies behind the end of a stream that was put back waits there in
// silence; one whose place was forgotten is moved on in silence) the Stream finds
// out by itself.
package natsfeed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"durward/denylist"
)

// Config is a feed by NATS JetStream.
type Config struct {
	// URL is the server's address, such as tls://nats.example.com:4222, or those of
	// several servers of one cluster, separated by commas. Required.
	URL string `yaml:"url"`
	// Stream is the name of the stream: letters, digits, dash and underscore. Its
	// subjects are durward.NAME.>, and snapshots are in the object store bucket
	// NAME_snapshot. durward feed init makes both. Required.
	Stream string `yaml:"stream"`
	// CredsFile is a file with a user's JWT and its nkey seed, as nsc makes it.
	CredsFile string `yaml:"creds_file"`
	// NKeyFile is a file with an nkey seed.
	NKeyFile string `yaml:"nkey_file"`
	// CAFile says who may sign the servers' certificates; default: the system's. With
	// it, only TLS is spoken.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the certificate shown to a server that asks for one.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

const (
	dialIn  = 2 * time.Second
	askIn   = 3 * time.Second
	object  = "snapshot"
	cursor  = "durward-cursor" // in the object's metadata
	minAge  = time.Hour
	dedupIn = 2 * time.Minute
)

var streamName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

const longestName = 200

// Check says what is wrong with the configuration. signed is whether records must
// be signed: only then may they travel in the open.
func (cfg Config) Check(signed bool) error {
	var wrong []error
	if cfg.URL == "" {
		wrong = append(wrong, errors.New("url is missing; write the server's address, such as tls://nats.example.com:4222"))
	}
	for address := range strings.SplitSeq(cfg.URL, ",") {
		if cfg.URL == "" {
			break
		}
		u, err := url.Parse(strings.TrimSpace(address))
		switch {
		case err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "":
			wrong = append(wrong, fmt.Errorf("url: %q is not the address of a NATS server, such as tls://nats.example.com:4222", address))
		case u.User != nil:
			wrong = append(wrong, fmt.Errorf("url: a password in the address of %s would be seen by all who read the configuration; use creds_file or nkey_file", u.Host))
		case u.Scheme == "nats" && cfg.CAFile == "" && cfg.CertFile == "" && !signed && !isLoopback(u.Hostname()):
			wrong = append(wrong, fmt.Errorf("url: %q is in the open off loopback, where anybody between could hold revocations back; use tls:// or ca_file, or signed records (source_keys)", address))
		}
	}
	if len(cfg.Stream) > longestName || !streamName.MatchString(cfg.Stream) {
		wrong = append(wrong, fmt.Errorf("stream: %q is not the name of a stream, such as REVOCATIONS", cfg.Stream))
	}
	if cfg.CredsFile != "" && cfg.NKeyFile != "" {
		wrong = append(wrong, errors.New("creds_file and nkey_file are two ways to say who one is; keep one"))
	}
	if cfg.CredsFile != "" {
		if _, err := os.ReadFile(cfg.CredsFile); err != nil {
			wrong = append(wrong, fmt.Errorf("creds_file: %w", err))
		}
	}
	if _, err := cfg.options(); err != nil {
		wrong = append(wrong, err)
	}
	return errors.Join(wrong...)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (cfg Config) options() ([]nats.Option, error) {
	all := []nats.Option{
		nats.Name("durward"), nats.Timeout(dialIn), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(200 * time.Millisecond), nats.ReconnectJitter(200*time.Millisecond, 200*time.Millisecond),
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
		// What waits for a server that is away would arrive after it was given up.
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // it would be written to standard error
	}
	if cfg.CredsFile != "" {
		all = append(all, nats.UserCredentials(cfg.CredsFile))
	}
	if cfg.NKeyFile != "" {
		option, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("nkey_file: %w", err)
		}
		all = append(all, option)
	}
	if cfg.CAFile != "" {
		text, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		if !bytes.Contains(text, []byte("-----BEGIN CERTIFICATE-----")) {
			return nil, fmt.Errorf("ca_file: %s holds no PEM certificate", cfg.CAFile)
		}
		all = append(all, nats.RootCAs(cfg.CAFile))
	}
	if cfg.CertFile != "" || cfg.KeyFile != "" {
		if _, err := os.ReadFile(cfg.CertFile); err != nil {
			return nil, fmt.Errorf("cert_file: %w", err)
		}
		if _, err := os.ReadFile(cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("key_file: %w", err)
		}
		all = append(all, nats.ClientCert(cfg.CertFile, cfg.KeyFile))
	}
	return all, nil
}

func (cfg Config) subjects() string { return "durward." + cfg.Stream + ".>" }

func (cfg Config) bucket() string { return cfg.Stream + "_snapshot" }

// An Engine is a stream of a NATS server or cluster. Only [Open] makes one.
type Engine struct {
	cfg  Config
	conn *nats.Conn
	js   jetstream.JetStream
}

var _ denylist.Engine = (*Engine)(nil)

// Open begins to connect, and does not wait for it.
func Open(cfg Config) (*Engine, error) {
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	conn, err := nats.Connect(cfg.URL, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	js, err := jetstream.New(conn, jetstream.WithDefaultTimeout(askIn))
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &Engine{cfg: cfg, conn: conn, js: js}, nil
}

// Close ends the connection.
func (e *Engine) Close() { e.conn.Close() }

// away says why the server cannot be asked, which a time-out does not.
func (e *Engine) away(err error) error {
	if !e.conn.IsConnected() {
		if last := e.conn.LastError(); last != nil {
			return fmt.Errorf("no connection to NATS at %s: %w", e.cfg.URL, last)
		}
		return fmt.Errorf("no connection to NATS at %s", e.cfg.URL)
	}
	return err
}

// Ends asks for the stream, and refuses one that could lose something by its own
// settings.
func (e *Engine) Ends(ctx context.Context) (denylist.Ends, error) {
	stream, err := e.js.Stream(ctx, e.cfg.Stream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return denylist.Ends{}, fmt.Errorf("there is no stream %q; make it with: durward feed init", e.cfg.Stream)
	case err != nil:
		return denylist.Ends{}, e.away(fmt.Errorf("ask for stream %q: %w", e.cfg.Stream, err))
	}
	info := stream.CachedInfo()
	if err := e.cfg.verify(info.Config); err != nil {
		return denylist.Ends{}, err
	}
	ends := denylist.Ends{Log: info.Created.UTC().Format(time.RFC3339Nano), First: info.State.FirstSeq, Last: info.State.LastSeq, Missing: uint64(info.State.NumDeleted)}
	if info.State.Msgs == 0 {
		ends.First = ends.Last + 1
	}
	return ends, nil
}

// verify says what is wrong with a stream's settings.
func (cfg Config) verify(c jetstream.StreamConfig) error {
	var wrong []string
	must := func(ok bool, text string) {
		if !ok {
			wrong = append(wrong, text)
		}
	}
	must(slices.Contains(c.Subjects, cfg.subjects()) || c.Mirror != nil, "subjects must have "+cfg.subjects())
	must(c.Retention == jetstream.LimitsPolicy, "retention must be limits, or messages go once somebody has read them")
	must(c.Discard == jetstream.DiscardNew, "discard must be new, or a full stream drops the oldest revocations in silence")
	must(c.DenyDelete && c.DenyPurge, "deny_delete and deny_purge must be set, or whoever may write can take messages out")
	must(c.MaxMsgsPerSubject <= 0, "max_msgs_per_subject must not be set, it takes messages out of the middle")
	must(!c.AllowMsgTTL && !c.AllowRollup, "allow_msg_ttl and allow_rollup must not be set, they take messages out of the middle")
	must(!c.NoAck, "no_ack must not be set, or nobody knows what the server keeps")
	must(c.MaxMsgSize <= 0 || c.MaxMsgSize >= denylist.MaxRecord, fmt.Sprintf("max_msg_size must be %d or more", denylist.MaxRecord))
	must(c.MaxAge == 0 || c.MaxAge >= minAge, "max_age must be an hour or more, better three days: who was away for longer needs a snapshot")
	if len(wrong) > 0 {
		return fmt.Errorf("stream %q is not fit for revocations: %s; mend it with: nats stream edit, or make another with: durward feed init", cfg.Stream, strings.Join(wrong, "; "))
	}
	return nil
}

// Read follows the stream with a consumer that lasts as long as it is read.
func (e *Engine) Read(ctx context.Context, after uint64, take func(number uint64, data []byte) error) error {
	ask, cancel := context.WithTimeout(ctx, askIn)
	defer cancel()
	// Not the client's ordered consumer, which begins again by itself when something
	// went wrong, at a place that may not exist any more.
	consumer, err := e.js.CreateConsumer(ask, e.cfg.Stream, jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1,
		InactiveThreshold: 30 * time.Second, MemoryStorage: true, Replicas: 1,
	})
	if err != nil {
		return e.away(fmt.Errorf("follow stream %q: %w", e.cfg.Stream, err))
	}
	defer func() {
		drop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if e.conn.IsConnected() {
			e.js.DeleteConsumer(drop, e.cfg.Stream, consumer.CachedInfo().Name) // the server does it by itself later
		}
	}()
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1000), jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return e.away(fmt.Errorf("follow stream %q: %w", e.cfg.Stream, err))
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	for {
		m, err := messages.Next()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return e.away(fmt.Errorf("follow stream %q: %w", e.cfg.Stream, err))
		}
		at, err := m.Metadata()
		if err != nil {
			return err
		}
		if err := take(at.Sequence.Stream, m.Data()); err != nil {
			return err
		}
	}
}

// Message asks for one message.
func (e *Engine) Message(ctx context.Context, number uint64) ([]byte, error) {
	stream, err := e.js.Stream(ctx, e.cfg.Stream)
	if err != nil {
		return nil, e.away(err)
	}
	m, err := stream.GetMsg(ctx, number)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, denylist.ErrNoMessage
	case err != nil:
		return nil, e.away(err)
	}
	return m.Data, nil
}

// Append publishes a message and waits for the stream's word. That word means a
// majority of the stream's replicas has it; whether it is on disk there is the
// server's setting (sync_interval).
func (e *Engine) Append(ctx context.Context, data []byte, here bool) error {
	sum := sha256.Sum256(data)
	subject := "durward." + e.cfg.Stream + ".log"
	if here {
		subject = "durward." + e.cfg.Stream + ".here"
	}
	_, err := e.js.Publish(ctx, subject, data, jetstream.WithExpectStream(e.cfg.Stream), jetstream.WithMsgID(hex.EncodeToString(sum[:16])))
	if err != nil {
		return e.away(fmt.Errorf("write to stream %q: %w", e.cfg.Stream, err))
	}
	return nil
}

// Snapshot asks for what the object store has.
func (e *Engine) Snapshot(ctx context.Context) (denylist.Saved, error) {
	store, err := e.store(ctx)
	if err != nil {
		return denylist.Saved{}, err
	}
	info, err := store.GetInfo(ctx, object)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return denylist.Saved{}, denylist.ErrNoSnapshot
	case err != nil:
		return denylist.Saved{}, e.away(err)
	}
	saved := denylist.Saved{Made: info.ModTime}
	if err := json.Unmarshal([]byte(info.Metadata[cursor]), &saved.At); err != nil {
		return denylist.Saved{}, fmt.Errorf("object %q of bucket %q does not say where it was taken: %w", object, e.cfg.bucket(), err)
	}
	return saved, nil
}

func (e *Engine) store(ctx context.Context) (jetstream.ObjectStore, error) {
	store, err := e.js.ObjectStore(ctx, e.cfg.bucket())
	switch {
	case errors.Is(err, jetstream.ErrBucketNotFound):
		return nil, fmt.Errorf("%w: there is no bucket %q; make it with: durward feed init", denylist.ErrNoSnapshot, e.cfg.bucket())
	case err != nil:
		return nil, e.away(err)
	}
	return store, nil
}

// OpenSnapshot reads from the object store.
func (e *Engine) OpenSnapshot(ctx context.Context) (io.ReadCloser, error) {
	store, err := e.store(ctx)
	if err != nil {
		return nil, err
	}
	from, err := store.Get(ctx, object)
	if err != nil {
		return nil, e.away(err)
	}
	return from, nil
}

// SaveSnapshot replaces the object.
func (e *Engine) SaveSnapshot(ctx context.Context, at denylist.Cursor, snapshot io.Reader) error {
	store, err := e.store(ctx)
	if err != nil {
		return err
	}
	text, err := json.Marshal(at)
	if err != nil {
		return err
	}
	_, err = store.Put(ctx, jetstream.ObjectMeta{Name: object, Metadata: map[string]string{cursor: string(text)}}, snapshot)
	if err != nil {
		return e.away(err)
	}
	return nil
}

// Storage is how much is kept and how often.
type Storage struct {
	Replicas int           // how many servers keep each message: 1, 3 or 5
	MaxAge   time.Duration // for how long; who was away for longer needs a snapshot
	MaxBytes int64         // at most; then nothing more can be revoked, so leave room
}

// Init makes the stream and the bucket if they are not there, and checks what is
// there. It says what it did, a line each.
func Init(ctx context.Context, cfg Config, s Storage) (did []string, err error) {
	e, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	_, err = e.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: cfg.Stream, Description: "revocations of durward", Subjects: []string{cfg.subjects()},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage, Replicas: s.Replicas,
		MaxAge: s.MaxAge, MaxBytes: s.MaxBytes, MaxMsgSize: denylist.MaxRecord, Duplicates: min(dedupIn, s.MaxAge), DenyDelete: true, DenyPurge: true,
	})
	switch {
	case errors.Is(err, jetstream.ErrStreamNameAlreadyInUse):
		did = append(did, fmt.Sprintf("stream %q was there", cfg.Stream))
	case err != nil:
		return did, e.away(fmt.Errorf("make stream %q: %w", cfg.Stream, err))
	default:
		did = append(did, fmt.Sprintf("stream %q was made: %d replicas, messages are kept for %s, at most %d bytes", cfg.Stream, s.Replicas, s.MaxAge, s.MaxBytes))
	}
	if _, err := e.Ends(ctx); err != nil {
		return did, err
	}
	_, err = e.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: cfg.bucket(), Description: "snapshots of durward's revocations", Replicas: s.Replicas})
	switch {
	case errors.Is(err, jetstream.ErrBucketExists):
		did = append(did, fmt.Sprintf("bucket %q was there", cfg.bucket()))
	case err != nil:
		return did, e.away(fmt.Errorf("make bucket %q: %w", cfg.bucket(), err))
	default:
		did = append(did, fmt.Sprintf("bucket %q was made", cfg.bucket()))
	}
	return did, nil
}
