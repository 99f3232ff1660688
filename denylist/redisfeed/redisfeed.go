// Package redisfeed keeps the log of a [denylist.Stream] in a stream of Redis or
// Valkey.
//
//	NAME                     the stream; ids are 1-0, 2-0, 3-0, …
//	{NAME}:head              hash: log (which log it is), seq (the last number)
//	{NAME}:minutes           hash: minute → the first number of it, to know what is old
//	{NAME}:snapshot          hash: at, made, id, chunks
//	{NAME}:snapshot:ID:N     a part of the snapshot
//
// One script appends, so that the ids have no holes; the ids that Redis makes by
// itself are times, from which nobody can tell whether one is missing. Publish and
// subscribe was refused, which forgets whoever is away, and so were keyspace events,
// which come when a key is cleaned up.
//
// Redis acknowledges what it has in memory. A replica that takes over without the
// last writes, or a server that comes back from an old file, has lost revocations
// that it promised to keep; the Stream finds out and hands them back. min_replicas
// makes that less likely.
package redisfeed

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"durward/denylist"
)

// Config is a feed by Redis Streams.
type Config struct {
	// URL is the server's address and database, such as rediss://redis.example.com:6379/0,
	// or redis:// without TLS. Required.
	URL string `yaml:"url"`
	// Stream is the key of the stream. The other keys begin with it in braces, so that
	// a cluster keeps them together. Required.
	Stream string `yaml:"stream"`
	// Username of the ACL user; default: the default user.
	Username string `yaml:"username"`
	// PasswordFile holds the password.
	PasswordFile string `yaml:"password_file"`
	// CAFile says who may sign the server's certificate; default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the certificate shown to a server that asks for one.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// MinReplicas is how many replicas must confirm what is revoked before it counts
	// as kept. Default 0: what a server acknowledged can be lost when a replica takes
	// over, until a gateway hands it back.
	MinReplicas int `yaml:"min_replicas"`
	// Keep is how long messages are kept. Default 72h; at least 1h. Who was away for
	// longer needs a snapshot.
	Keep time.Duration `yaml:"keep"`
}

const (
	defaultKeep = 72 * time.Hour
	block       = 500 * time.Millisecond // how long a read waits; it notices the end of its context no sooner
	atOnce      = 512                    // messages
	chunkSize   = 4 << 20
	confirmIn   = 2 * time.Second
	lookEvery   = time.Minute // at the server's settings
)

// Check says what is wrong with the configuration. signed is whether records must
// be signed: only then may they travel in the open.
func (cfg Config) Check(signed bool) error {
	var wrong []error
	u, err := url.Parse(cfg.URL)
	switch {
	case cfg.URL == "":
		wrong = append(wrong, errors.New("url is missing; write the server's address, such as rediss://redis.example.com:6379/0"))
	case err != nil || u.Scheme != "redis" && u.Scheme != "rediss" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		wrong = append(wrong, errors.New("url is not the address of a Redis server, such as rediss://redis.example.com:6379/0"))
	case u.User != nil:
		wrong = append(wrong, fmt.Errorf("url: a password in the address of %s would be seen by all who read the configuration; use username and password_file", u.Host))
	case u.Scheme == "redis" && !signed && !isLoopback(u.Hostname()):
		wrong = append(wrong, fmt.Errorf("url: %q is in the open off loopback, where anybody between could hold revocations back; use rediss://, or signed records (source_keys)", cfg.URL))
	default:
		if _, err := cfg.options(); err != nil {
			wrong = append(wrong, err)
		}
	}
	if cfg.Stream == "" || len(cfg.Stream) > 200 || strings.ContainsAny(cfg.Stream, "{} \t\r\n*?[]") {
		wrong = append(wrong, fmt.Errorf("stream: %q is not the key of a stream, such as revocations", cfg.Stream))
	}
	if cfg.MinReplicas < 0 {
		wrong = append(wrong, errors.New("min_replicas is negative"))
	}
	if cfg.Keep != 0 && cfg.Keep < time.Hour {
		wrong = append(wrong, fmt.Errorf("keep: %s is too short, who is away for longer needs a snapshot; write 1h or more", cfg.Keep))
	}
	return errors.Join(wrong...)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (cfg Config) options() (*redis.Options, error) {
	o, err := redis.ParseURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	o.Username = cfg.Username
	if cfg.PasswordFile != "" {
		text, err := os.ReadFile(cfg.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("password_file: %w", err)
		}
		if o.Password = strings.TrimSpace(string(text)); o.Password == "" {
			return nil, fmt.Errorf("password_file: %s is empty", cfg.PasswordFile)
		}
	}
	if o.TLSConfig != nil {
		o.TLSConfig.MinVersion = tls.VersionTLS12
		if cfg.CAFile != "" {
			text, err := os.ReadFile(cfg.CAFile)
			if err != nil {
				return nil, fmt.Errorf("ca_file: %w", err)
			}
			o.TLSConfig.RootCAs = x509.NewCertPool()
			if !o.TLSConfig.RootCAs.AppendCertsFromPEM(text) {
				return nil, fmt.Errorf("ca_file: %s holds no PEM certificate", cfg.CAFile)
			}
		}
		if cfg.CertFile != "" || cfg.KeyFile != "" {
			cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("cert_file and key_file: %w", err)
			}
			o.TLSConfig.Certificates = []tls.Certificate{cert}
		}
	} else if cfg.CAFile != "" || cfg.CertFile != "" || cfg.KeyFile != "" {
		return nil, errors.New("ca_file, cert_file and key_file are for TLS, which the url does not ask for; write rediss://")
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = 2*time.Second, 3*time.Second, 3*time.Second
	o.ContextTimeoutEnabled = true
	o.MaxRetries = -1 // an append that failed may have been done; who asked decides
	o.PoolSize, o.MinIdleConns = 4, 0
	o.DisableIdentity = true // an ACL need not allow it
	// Hosted servers' announcements are of no use to a feed that notices by itself, and
	// finding out whether there are any is a race between the client's connections.
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return o, nil
}

// silent takes what the client would write to standard error, where the gateway's log
// is; what goes wrong comes back as errors.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(silent{}) } // the client has no other way

// An Engine is a stream of a Redis server. Only [Open] makes one.
type Engine struct {
	cfg    Config
	client *redis.Client

	mu     sync.Mutex
	looked time.Time // at the server's settings
}

var _ denylist.Engine = (*Engine)(nil)

// Open makes an engine; it connects when it is first asked.
func Open(cfg Config) (*Engine, error) {
	if cfg.Keep == 0 {
		cfg.Keep = defaultKeep
	}
	o, err := cfg.options()
	if err != nil {
		return nil, err
	}
	return &Engine{cfg: cfg, client: redis.NewClient(o)}, nil
}

// Close ends the connections.
func (e *Engine) Close() { e.client.Close() }

func (e *Engine) key(name string) string { return "{" + e.cfg.Stream + "}:" + name }

// Ends reads the head and the first id, and looks at the server's settings now and
// then.
func (e *Engine) Ends(ctx context.Context) (denylist.Ends, error) {
	if err := e.look(ctx); err != nil {
		return denylist.Ends{}, err
	}
	var head *redis.SliceCmd
	var oldest *redis.XMessageSliceCmd
	var kept *redis.IntCmd
	_, err := e.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		head = p.HMGet(ctx, e.key("head"), "log", "seq")
		oldest = p.XRangeN(ctx, e.cfg.Stream, "-", "+", 1)
		kept = p.XLen(ctx, e.cfg.Stream)
		return nil
	})
	if err != nil {
		return denylist.Ends{}, fmt.Errorf("ask Redis for stream %q: %w", e.cfg.Stream, err)
	}
	log, _ := head.Val()[0].(string)
	seq, _ := head.Val()[1].(string)
	if log == "" {
		return denylist.Ends{}, fmt.Errorf("there is no stream %q yet; a gateway that writes (forward_revocations) begins it, or: durward feed init", e.cfg.Stream)
	}
	ends := denylist.Ends{Log: log}
	if ends.Last, err = strconv.ParseUint(seq, 10, 64); err != nil {
		return denylist.Ends{}, fmt.Errorf("%s: seq is %q, not a number: something else writes there", e.key("head"), seq)
	}
	ends.First = ends.Last + 1
	if messages := oldest.Val(); len(messages) > 0 {
		if ends.First, err = number(messages[0].ID); err != nil {
			return denylist.Ends{}, err
		}
		if between := ends.Last - ends.First + 1; between > uint64(kept.Val()) {
			ends.Missing = between - uint64(kept.Val())
		}
	}
	return ends, nil
}

// look refuses a server that may evict keys: the log is one.
func (e *Engine) look(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.looked) < lookEvery {
		return nil
	}
	info, err := e.client.Info(ctx, "memory").Result()
	var refused redis.Error
	if errors.As(err, &refused) && strings.HasPrefix(refused.Error(), "NOPERM") {
		info, err = "", nil // the ACL keeps it from us; the operator was told in the documentation
	}
	if err != nil {
		return fmt.Errorf("ask Redis for its settings: %w", err)
	}
	var policy, most string
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, "maxmemory_policy:"); ok {
			policy = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "maxmemory:"); ok {
			most = strings.TrimSpace(v)
		}
	}
	if policy != "" && policy != "noeviction" && most != "0" {
		return fmt.Errorf("the server may drop the log of revocations to make room (maxmemory-policy %s); set maxmemory-policy noeviction", policy)
	}
	e.looked = time.Now()
	return nil
}

func number(id string) (uint64, error) {
	text, sub, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || sub != "0" {
		return 0, fmt.Errorf("the stream has a message with id %.40q, which durward did not write; give it a stream of its own", id)
	}
	return n, nil
}

func text(m redis.XMessage) []byte {
	data, _ := m.Values["r"].(string)
	return []byte(data)
}

// Read waits for messages and hands them on.
func (e *Engine) Read(ctx context.Context, after uint64, take func(number uint64, data []byte) error) error {
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		streams, err := e.client.XRead(ctx, &redis.XReadArgs{Streams: []string{e.cfg.Stream, strconv.FormatUint(after, 10) + "-0"}, Count: atOnce, Block: block}).Result()
		switch {
		case errors.Is(err, redis.Nil):
			continue
		case err != nil:
			return fmt.Errorf("follow stream %q of Redis: %w", e.cfg.Stream, err)
		}
		for _, m := range streams[0].Messages {
			n, err := number(m.ID)
			if err != nil {
				return err
			}
			if err := take(n, text(m)); err != nil {
				return err
			}
			after = n
		}
	}
}

// Message reads one message.
func (e *Engine) Message(ctx context.Context, n uint64) ([]byte, error) {
	id := strconv.FormatUint(n, 10) + "-0"
	messages, err := e.client.XRangeN(ctx, e.cfg.Stream, id, id, 1).Result()
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask Redis for message %d: %w", n, err)
	case len(messages) == 0:
		return nil, denylist.ErrNoMessage
	}
	return text(messages[0]), nil
}

// append adds a message under the next number. Once a minute, it forgets what is
// older than it is to be kept: the numbers are no times, so the first of each minute
// is noted. A script was taken, and not a function, which somebody has to load
// beforehand and again after a server was replaced.
//
//	KEYS stream, head, minutes   ARGV data, how the log is named if it begins now, minutes to keep
var appendScript = redis.NewScript(`
redis.call('HSETNX', KEYS[2], 'log', ARGV[2])
local seq = redis.call('HINCRBY', KEYS[2], 'seq', 1)
redis.call('XADD', KEYS[1], string.format('%.0f-0', seq), 'r', ARGV[1])
local minute = math.floor(tonumber(redis.call('TIME')[1]) / 60)
if redis.call('HSETNX', KEYS[3], minute, string.format('%.0f', seq)) == 1 then
  local oldest = minute - tonumber(ARGV[3])
  local first = nil
  local all = redis.call('HGETALL', KEYS[3])
  for i = 1, #all, 2 do
    if tonumber(all[i]) < oldest then
      if first == nil or tonumber(all[i + 1]) > first then first = tonumber(all[i + 1]) end
      redis.call('HDEL', KEYS[3], all[i])
    end
  end
  if first ~= nil then redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f-0', first)) end
end
return seq
`)

// Append runs the script, and waits for replicas if it is to. Redis has no rights by
// what is written to a stream.
func (e *Engine) Append(ctx context.Context, data []byte, _ bool) error {
	conn := e.client.Conn() // what is waited for is what this connection wrote
	defer conn.Close()
	minutes := int(e.cfg.Keep / time.Minute)
	// The name is for a log that this begins. It is another one each time: who began a
	// log, and begins it again after it was deleted, must notice too.
	if err := appendScript.Run(ctx, conn, []string{e.cfg.Stream, e.key("head"), e.key("minutes")}, data, rand.Text(), minutes).Err(); err != nil {
		return fmt.Errorf("write to stream %q of Redis: %w", e.cfg.Stream, err)
	}
	if e.cfg.MinReplicas == 0 {
		return nil
	}
	n, err := conn.Wait(ctx, e.cfg.MinReplicas, confirmIn).Result()
	switch {
	case err != nil:
		return fmt.Errorf("wait for Redis' replicas: %w", err)
	case n < int64(e.cfg.MinReplicas):
		return fmt.Errorf("%d of %d replicas of Redis confirmed it within %s (min_replicas)", n, e.cfg.MinReplicas, confirmIn)
	}
	return nil
}

// kept is the hash of the snapshot that is kept.
type kept struct {
	At     string `redis:"at"`
	Made   int64  `redis:"made"` // milliseconds
	ID     string `redis:"id"`
	Chunks int    `redis:"chunks"`
}

func (e *Engine) kept(ctx context.Context) (k kept, err error) {
	if err := e.client.HGetAll(ctx, e.key("snapshot")).Scan(&k); err != nil {
		return kept{}, fmt.Errorf("ask Redis for a snapshot: %w", err)
	}
	if k.ID == "" {
		return kept{}, denylist.ErrNoSnapshot
	}
	return k, nil
}

// Snapshot reads what is said of it.
func (e *Engine) Snapshot(ctx context.Context) (denylist.Saved, error) {
	k, err := e.kept(ctx)
	if err != nil {
		return denylist.Saved{}, err
	}
	saved := denylist.Saved{Made: time.UnixMilli(k.Made)}
	if err := json.Unmarshal([]byte(k.At), &saved.At); err != nil {
		return denylist.Saved{}, fmt.Errorf("%s does not say where it was taken: %w", e.key("snapshot"), err)
	}
	return saved, nil
}

func (e *Engine) chunk(id string, n int) string {
	return e.key("snapshot:" + id + ":" + strconv.Itoa(n))
}

// OpenSnapshot reads it part by part.
func (e *Engine) OpenSnapshot(ctx context.Context) (io.ReadCloser, error) {
	k, err := e.kept(ctx)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		for n := range k.Chunks {
			part, err := e.client.Get(ctx, e.chunk(k.ID, n)).Bytes()
			if err != nil {
				w.CloseWithError(fmt.Errorf("part %d of %d: %w", n, k.Chunks, err))
				return
			}
			if _, err := w.Write(part); err != nil {
				return
			}
		}
		w.Close()
	}()
	return r, nil
}

// SaveSnapshot writes the parts, then what names them; those of the last one last a
// minute more, for who reads them.
func (e *Engine) SaveSnapshot(ctx context.Context, at denylist.Cursor, snapshot io.Reader) error {
	where, err := json.Marshal(at)
	if err != nil {
		return err
	}
	old, err := e.kept(ctx)
	if err != nil && !errors.Is(err, denylist.ErrNoSnapshot) {
		return err
	}
	k := kept{At: string(where), Made: time.Now().UnixMilli(), ID: rand.Text()[:10]}
	part := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(snapshot, part)
		if n > 0 {
			// One that is never named goes by itself.
			if err := e.client.Set(ctx, e.chunk(k.ID, k.Chunks), part[:n], time.Hour).Err(); err != nil {
				return fmt.Errorf("write part %d of a snapshot to Redis: %w", k.Chunks, err)
			}
			k.Chunks++
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	_, err = e.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, e.key("snapshot"), k)
		for n := range k.Chunks {
			p.Persist(ctx, e.chunk(k.ID, n))
		}
		for n := range old.Chunks {
			p.Expire(ctx, e.chunk(old.ID, n), time.Minute)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("name a snapshot in Redis: %w", err)
	}
	return nil
}

// Init begins the log if it is not there, and checks the server. It says what it
// did, a line each.
func Init(ctx context.Context, cfg Config) (did []string, err error) {
	e, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	made, err := e.client.HSetNX(ctx, e.key("head"), "log", rand.Text()).Result()
	if err != nil {
		return nil, fmt.Errorf("begin stream %q of Redis: %w", cfg.Stream, err)
	}
	if made {
		if err := e.client.HSetNX(ctx, e.key("head"), "seq", 0).Err(); err != nil {
			return nil, fmt.Errorf("begin stream %q of Redis: %w", cfg.Stream, err)
		}
		did = append(did, fmt.Sprintf("stream %q was begun", cfg.Stream))
	} else {
		did = append(did, fmt.Sprintf("stream %q was there", cfg.Stream))
	}
	_, err = e.Ends(ctx)
	return did, err
}
