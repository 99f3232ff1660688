package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/redis/go-redis/v9"
)

// rightsHold shows that the rights that docs/engines.md gives are enough, for who
// writes and for who reads, and that a reader cannot revoke for the others. as makes
// gateways that begin from here on be one or the other. Of the three, so many can say
// that they are there.
func (f *engineFleet) rightsHold(there int, as func(user string)) {
	t := f.t
	as("writer")
	writer := f.begin(true)
	as("init")
	f.init(&gateway{config: f.written(f.config(true))})
	writer.waitReady()
	as("reader")
	reader := f.begin(false)
	reader.waitReady()
	rebel := f.begin(true) // as a reader, and would like to write
	rebel.waitReady()
	dead, mine := f.idp.bearer(), f.idp.bearer()
	if scope := writer.revokes(dead); scope != "fleet" {
		t.Errorf("the writer's revocation has scope %q", scope)
	}
	refusedAt(t, dead.text, writer, reader, rebel)
	if scope := rebel.revokes(mine); scope != "local" {
		t.Errorf("the reader's revocation has scope %q", scope)
	}
	reader.says(mine, "/", 200, "")
	status, said := writer.revokesAndWaits(5*time.Second, f.idp.bearer())
	if status != 200 || said.Confirmed != there || said.Gateways != there {
		t.Errorf("the roll call: %d %+v", status, said)
	}
	eventually(t, 60*time.Second, "the writer leaves a snapshot", f.saved)
	as("reader")
	late := f.late()
	late.says(dead, "/", 401, "revoked")
}

// written is a file with a configuration.
func (f *engineFleet) written(config string) string {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "durward.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func TestNATSRights(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/engines.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rules, ok := strings.Cut(string(text), "\nauthorization {")
	rules, _, closed := strings.Cut(rules, "```")
	if !ok || !closed {
		t.Fatal("docs/engines.md gives no rights for NATS")
	}
	rules = "authorization {" + rules
	dir := t.TempDir()
	seeds := map[string]string{}
	for _, user := range []string{"reader", "writer", "init"} {
		key, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, _ := key.PublicKey()
		seed, _ := key.Seed()
		seeds[user] = filepath.Join(dir, user+".nk")
		if err := os.WriteFile(seeds[user], seed, 0o600); err != nil {
			t.Fatal(err)
		}
		rules = strings.Replace(rules, "nkey: "+strings.ToUpper(user), "nkey: "+public, 1)
	}
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	options, err := server.ProcessConfigFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	if len(options.Nkeys) != 3 {
		t.Fatalf("docs/engines.md gives rights to %d users", len(options.Nkeys))
	}
	// Beside them, one for the test itself.
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := key.PublicKey()
	options.Nkeys = append(options.Nkeys, &server.NkeyUser{Nkey: public})
	e := newNATSWith(t, options, key)
	f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
	plain := f.feed
	f.rightsHold(3, func(user string) {
		f.feed = strings.TrimSuffix(plain, "}") + fmt.Sprintf(", nkey_file: %q}", seeds[user])
	})
	// Who has no key has no way in.
	f.feed = plain
	if out, err := exec.Command(binary, "feed", "init", "-config", f.written(f.config(true))).CombinedOutput(); err == nil {
		t.Errorf("without a key: %s", out)
	}
}

func TestRedisRights(t *testing.T) {
	t.Parallel()
	e := newRedis(t)
	f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
	client := redis.NewClient(&redis.Options{Addr: e.address()})
	defer client.Close()
	ctx := context.Background()
	for user, rights := range aclRules(t) {
		args := []any{"ACL", "SETUSER", user}
		for _, r := range strings.Fields(rights) {
			args = append(args, r)
		}
		if err := client.Do(ctx, args...).Err(); err != nil {
			t.Fatalf("%s: %v", user, err)
		}
	}
	password := t.TempDir() + "/password"
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	plain := f.feed
	f.rightsHold(1, func(user string) { // a reader may write nothing, not even that
		if user == "init" { // whoever writes may begin the stream
			user = "writer"
		}
		f.feed = strings.TrimSuffix(plain, "}") + fmt.Sprintf(", username: durward-%s, password_file: %q}", user, password)
	})
}

// aclRules are the rules that docs/engines.md gives, by user.
func aclRules(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../docs/engines.md")
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "ACL SETUSER "); ok {
			user, rights, _ := strings.Cut(strings.TrimSpace(rest), " ")
			rules[user] = rights
		}
	}
	if len(rules) != 2 {
		t.Fatalf("docs/engines.md has rules for %d users", len(rules))
	}
	return rules
}
