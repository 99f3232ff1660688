package denylist

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"time"

	"durward/token"
)

// A snapshot is everything that a list holds, as a file:
//
//	"durward snapshot 1\n"
//	length of the header (4 bytes), header (JSON, see SnapshotHeader)
//	blocks: kind (1 byte), number of entries (2 bytes), entries
//	  denial, kind 1 (jti) and 2 (sid): id (16), until (4)
//	  cutoff, kind 0x80 + 2 (sid) to 5 (iss): id (16), until (4), by iat (8), by auth_time (8),
//	    number of those with exceptions (1), each: time (8), 1 if by auth_time (1), number of ids (1), ids (16 each)
//	an empty block of kind 0
//	footer (JSON, see SnapshotFooter), its length (4 bytes)
//	SHA-256 of all of the above (32)
//	length of the signature (1): 0, or 64 and the Ed25519 signature of "durward snapshot" and that hash
//
// Numbers are big-endian, times are seconds since 1970, 0 is none, and an until of
// 2^32-1 is never. Nothing of a file is used unless all of it is as it was written.
const (
	snapshotMagic = "durward snapshot 1\n"
	snapshotSigns = "durward snapshot"
	blockEntries  = 4096
	cutoffKind    = 0x80
	maxHeader     = 1 << 20
	maxTrailer    = sha256.Size + 1 + ed25519.SignatureSize
)

// A SnapshotHeader is what a snapshot says of itself.
type SnapshotHeader struct {
	Made    time.Time `json:"made"`
	Entries int       `json:"entries"` // about: others were added while it was taken
	// Retention is for how long a revocation is remembered where the snapshot was
	// taken, by issuer, in seconds. Who accepts tokens for longer adds the difference.
	Retention map[string]int64 `json:"retention"`
	// Places are how far the sources' chains are part of it.
	Places []Place `json:"places,omitempty"`
	// Feeds are the same by feed, for the gateway's own next start.
	Feeds map[string][]Place `json:"feeds,omitempty"`
	// Cursors are how far the logs of engines were read, by feed, for the same.
	Cursors map[string]Cursor `json:"cursors,omitempty"`
}

// A SnapshotFooter is what is known only once a snapshot was taken.
type SnapshotFooter struct {
	// Own is a place in the chain that the gateway itself writes by which everything in
	// the snapshot was said, by this chain or another. Its next chain goes on from there.
	Own *Place `json:"own,omitempty"`
}

// MarshalText is the hash in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 32 hexadecimal digits.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("%.40q is not a hash; it has 32 hexadecimal digits", text)
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// retentions are for how long a revocation made now is remembered, by issuer, in
// whole seconds rounded up.
func (is Issuers) retentions() map[string]int64 {
	seconds := map[string]int64{}
	for _, i := range is {
		seconds[i.URL] = int64((i.MaxLifetime+i.Leeway+i.Skew)/time.Second) + 2
	}
	return seconds
}

// longest is the longest of them.
func (is Issuers) longest() time.Duration {
	longest := int64(0)
	for _, retention := range is.retentions() {
		longest = max(longest, retention)
	}
	return time.Duration(longest) * time.Second
}

// WriteSnapshot writes everything that the list holds. The header's places must
// have been taken before: what is added meanwhile may be part of it or not. The
// footer is asked for afterwards. A nil key signs nothing.
func WriteSnapshot(to io.Writer, l *List, header SnapshotHeader, footer func() SnapshotFooter, key ed25519.PrivateKey) error {
	header.Entries = l.Stats().Total
	header.Retention = l.Issuers().retentions()
	text, err := json.Marshal(header)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(to, 256<<10)
	b := blockWriter{to: io.MultiWriter(out, sum)}
	b.to.Write(binary.BigEndian.AppendUint32([]byte(snapshotMagic), uint32(len(text)))) // bufio keeps the error
	b.to.Write(text)
	for d := range l.Denials() {
		b.entry(byte(d.Kind))
		b.buf = d.ID.Append(b.buf)
		b.buf = binary.BigEndian.AppendUint32(b.buf, d.Until)
	}
	for c := range l.Cutoffs() {
		b.entry(cutoffKind | byte(c.Kind))
		b.buf = appendCutoff(b.buf, c)
	}
	b.flush()
	b.to.Write([]byte{0, 0, 0})
	text, err = json.Marshal(footer())
	if err != nil {
		return err
	}
	b.to.Write(text)
	b.to.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text))))
	hash := sum.Sum(nil)
	out.Write(hash)
	if key == nil {
		out.WriteByte(0)
	} else {
		out.WriteByte(ed25519.SignatureSize)
		out.Write(ed25519.Sign(key, append([]byte(snapshotSigns), hash...)))
	}
	return out.Flush()
}

// A blockWriter gathers entries of one kind into blocks.
type blockWriter struct {
	to    io.Writer
	kind  byte
	count int
	buf   []byte
}

// entry begins an entry of this kind.
func (b *blockWriter) entry(kind byte) {
	if kind != b.kind || b.count == blockEntries {
		b.flush()
	}
	b.kind = kind
	b.count++
}

func (b *blockWriter) flush() {
	if b.count > 0 {
		b.to.Write(binary.BigEndian.AppendUint16([]byte{b.kind}, uint16(b.count)))
		b.to.Write(b.buf)
	}
	b.count, b.buf = 0, b.buf[:0]
}

func appendCutoff(b []byte, c Cutoff) []byte {
	b = c.ID.Append(b)
	b = binary.BigEndian.AppendUint32(b, c.Until)
	b = binary.BigEndian.AppendUint64(b, uint64(c.IssuedAt))
	b = binary.BigEndian.AppendUint64(b, uint64(c.AuthTime))
	b = append(b, byte(len(c.Excepted)))
	for _, e := range c.Excepted {
		b = binary.BigEndian.AppendUint64(b, uint64(e.Before))
		by := byte(0)
		if e.ByAuthTime {
			by = 1
		}
		b = append(b, by, byte(len(e.Except)))
		for _, id := range e.Except {
			b = id.Append(b)
		}
	}
	return b
}

// A Snapshot is a file that was found to be as it was written. Close it.
type Snapshot struct {
	SnapshotHeader
	SnapshotFooter
	file   *os.File
	blocks int64 // where they begin
	end    int64 // and end
}

// OpenSnapshot checks a file: its hash, its signature if there are keys, and its
// header.
func OpenSnapshot(path string, keys Keys) (*Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{file: f}
	if err := s.check(keys); err != nil {
		f.Close()
		return nil, fmt.Errorf("snapshot %q: %w", path, err)
	}
	return s, nil
}

var errBrokenSnapshot = errors.New("it is not as it was written")

func (s *Snapshot) check(keys Keys) error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	// The trailer is found from the end: its last byte but a signature says how long
	// that is.
	end := make([]byte, min(info.Size(), maxTrailer))
	if _, err := s.file.ReadAt(end, info.Size()-int64(len(end))); err != nil {
		return err
	}
	var hash, signature []byte
	last := info.Size() - sha256.Size - 1 // where the contents end
	switch {
	case len(end) < maxTrailer:
		return errBrokenSnapshot
	case end[sha256.Size] == ed25519.SignatureSize && s.sums(info.Size()-maxTrailer, end[:sha256.Size]):
		hash, signature, last = end[:sha256.Size], end[sha256.Size+1:], info.Size()-maxTrailer
	case end[len(end)-1] == 0 && s.sums(last, end[len(end)-1-sha256.Size:len(end)-1]):
	default:
		return errBrokenSnapshot
	}
	if len(keys) > 0 && !keys.verify(append([]byte(snapshotSigns), hash...), signature) {
		return errors.New("it is not signed by one of source_keys")
	}
	start := make([]byte, len(snapshotMagic)+4)
	if _, err := s.file.ReadAt(start, 0); err != nil || string(start[:len(snapshotMagic)]) != snapshotMagic {
		return errors.New("it is of another kind or version")
	}
	length := int64(binary.BigEndian.Uint32(start[len(snapshotMagic):]))
	s.blocks = int64(len(start)) + length
	if err := s.json(&s.SnapshotHeader, int64(len(start)), length); err != nil {
		return err
	}
	var size [4]byte
	if _, err := s.file.ReadAt(size[:], last-int64(len(size))); err != nil {
		return err
	}
	length = int64(binary.BigEndian.Uint32(size[:]))
	s.end = last - int64(len(size)) - length
	if s.end < s.blocks {
		return errBrokenSnapshot
	}
	return s.json(&s.SnapshotFooter, s.end, length)
}

// json reads the JSON that stands somewhere in the file.
func (s *Snapshot) json(into any, at, length int64) error {
	if at < int64(len(snapshotMagic)) || length > maxHeader {
		return errBrokenSnapshot
	}
	text := make([]byte, length)
	if _, err := s.file.ReadAt(text, at); err != nil {
		return errBrokenSnapshot
	}
	return json.Unmarshal(text, into)
}

// sums is whether the hash is that of the file up to there.
func (s *Snapshot) sums(end int64, hash []byte) bool {
	sum := sha256.New()
	_, err := io.Copy(sum, io.NewSectionReader(s.file, 0, end))
	return err == nil && bytes.Equal(sum.Sum(nil), hash)
}

func (k Keys) verify(message, signature []byte) bool {
	for _, key := range k {
		if ed25519.Verify(key.Public, message, signature) {
			return true
		}
	}
	return false
}

// Close closes the file.
func (s *Snapshot) Close() error { return s.file.Close() }

// Restore adds what the snapshot holds to the list; without mass, cutoffs of whole
// issuers and clients are left out and counted. An error wraps ErrFull: what fits
// was added all the same.
func (s *Snapshot) Restore(l *List, mass bool) (leftOut int, err error) {
	least, longer := int64(0), int64(0)
	if l.floor.IsZero() { // see List.apply
		_, later := l.clocks(time.Now())
		least = later.Add(l.Issuers().longest()).Unix()
	}
	for issuer, retention := range l.Issuers().retentions() {
		longer = max(longer, retention-max(0, s.Retention[issuer]))
	}
	return s.restore(l, mass, least, longer)
}

// restoreForeign is Restore of a snapshot that somebody else took. When its entries
// may be forgotten was told by clocks and limits of theirs, of now and of the past:
// so each is kept for as long as if it had been made now, or then if that is later.
func (s *Snapshot) restoreForeign(l *List, mass bool, now time.Time) (leftOut int, err error) {
	_, later := l.clocks(now)
	return s.restore(l, mass, later.Unix(), int64(l.Issuers().longest()/time.Second))
}

func (s *Snapshot) restore(l *List, mass bool, least, longer int64) (leftOut int, err error) {
	r := &blockReader{
		r: bufio.NewReaderSize(io.NewSectionReader(s.file, s.blocks, s.end-s.blocks), 256<<10), least: least, longer: longer,
	}
	err = l.RestoreDenials(s.Entries, r.denials())
	err = errors.Join(err, l.RestoreCutoffs(func(yield func(Cutoff) bool) {
		for c := range r.cutoffs() {
			if !mass && isMass(c.Kind) {
				leftOut++
			} else if !yield(c) {
				return
			}
		}
	}))
	if err == nil && r.err == nil {
		r.finish()
	}
	if r.err != nil {
		err = fmt.Errorf("read the snapshot: %w", r.err)
	}
	return leftOut, err
}

// isMass is whether the kind names more than one user's tokens.
func isMass(kind token.Kind) bool { return kind == token.KindIssuer || kind == token.KindClient }

// A blockReader reads denials first, then cutoffs.
type blockReader struct {
	r      *bufio.Reader
	least  int64 // what an until is raised to
	longer int64 // and how much is added then
	kind   byte  // of the block that comes next, read already
	count  int
	ahead  bool
	err    error
}

// block is the next block's kind and number of entries, if it is of the form asked for.
func (r *blockReader) block(cutoffs bool) bool {
	if r.err != nil {
		return false
	}
	if !r.ahead {
		var head [3]byte
		if _, r.err = io.ReadFull(r.r, head[:]); r.err != nil {
			return false
		}
		r.kind, r.count, r.ahead = head[0], int(binary.BigEndian.Uint16(head[1:])), true
	}
	if r.kind == 0 || cutoffs != (r.kind&cutoffKind != 0) {
		return false
	}
	kind := token.Kind(r.kind &^ cutoffKind)
	if int(kind) > token.Kinds || !cutoffs && kind > token.KindSession {
		r.err = fmt.Errorf("it holds entries of a kind (%d) that this version does not know", r.kind)
		return false
	}
	r.ahead = false
	return true
}

// finish is called when there should be nothing left: what is left would not be
// enforced.
func (r *blockReader) finish() {
	if r.kind != 0 {
		r.err = errors.New("its blocks are out of order; denials come before cutoffs")
	} else if _, err := r.r.Peek(1); err != io.EOF || r.count != 0 {
		r.err = errors.New("something comes after its end")
	}
}

func (r *blockReader) until(b []byte) uint32 {
	return uint32(min(max(int64(binary.BigEndian.Uint32(b)), r.least)+r.longer, math.MaxUint32))
}

func (r *blockReader) bytes(b []byte) bool {
	_, r.err = io.ReadFull(r.r, b)
	return r.err == nil
}

func (r *blockReader) denials() iter.Seq[Denial] {
	return func(yield func(Denial) bool) {
		var b [20]byte
		for r.block(false) {
			for range r.count {
				if !r.bytes(b[:]) || !yield(Denial{token.Kind(r.kind), token.IDFrom([16]byte(b[:16])), r.until(b[16:])}) {
					return
				}
			}
		}
	}
}

func (r *blockReader) cutoffs() iter.Seq[Cutoff] {
	return func(yield func(Cutoff) bool) {
		for r.block(true) {
			for range r.count {
				c := r.cutoff()
				if r.err != nil || !yield(c) {
					return
				}
			}
		}
	}
}

func (r *blockReader) cutoff() Cutoff {
	var b [37]byte
	r.bytes(b[:])
	c := Cutoff{
		Kind: token.Kind(r.kind &^ cutoffKind), ID: token.IDFrom([16]byte(b[:16])), Until: r.until(b[16:]),
		IssuedAt: int64(binary.BigEndian.Uint64(b[20:])), AuthTime: int64(binary.BigEndian.Uint64(b[28:])),
	}
	for range b[36] {
		var e [10]byte
		if !r.bytes(e[:]) {
			break
		}
		excepted := ExceptedCutoff{Before: int64(binary.BigEndian.Uint64(e[:])), ByAuthTime: e[8] == 1}
		for range e[9] {
			var id [16]byte
			r.bytes(id[:])
			excepted.Except = append(excepted.Except, token.IDFrom(id))
		}
		c.Excepted = append(c.Excepted, excepted)
	}
	return c
}

// SaveSnapshot replaces the file as a whole or not at all, and durably.
func SaveSnapshot(path string, l *List, header SnapshotHeader, footer func() SnapshotFooter) error {
	tmp, err := CreateAnew(path + ".tmp")
	if err != nil {
		return err
	}
	err = errors.Join(WriteSnapshot(tmp, l, header, footer, nil), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the snapshot: %w", err), os.Remove(tmp.Name()))
	}
	return syncDir(filepath.Dir(path))
}
