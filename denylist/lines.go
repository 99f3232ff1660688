package denylist

import (
	"bufio"
	"bytes"
	"io"
)

// A Line is one line as it was read.
type Line struct {
	Text       []byte // without its end (LF or CRLF); valid until the next line is read
	Number     int    // from 1
	Start, End int64  // where it stands, in bytes from where reading began; End is after its line end
	Whole      bool   // it was ended by a newline: whoever writes the file is done with it
	Long       bool   // longer than MaxLine; Text is of no use
}

// Blank is whether there is nothing on the line.
func (l Line) Blank() bool { return !l.Long && len(bytes.TrimSpace(l.Text)) == 0 }

// A LineReader splits a feed into lines. However long a line is, it holds no more
// of it than MaxLine. It must be made by [NewLineReader].
type LineReader struct {
	r      *bufio.Reader
	number int
	offset int64
}

// NewLineReader reads from r.
func NewLineReader(r io.Reader) *LineReader {
	return &LineReader{r: bufio.NewReaderSize(r, MaxLine+len("\r\n"))}
}

// Next is the next line, or io.EOF after the last one.
func (l *LineReader) Next() (Line, error) {
	text, err := l.r.ReadSlice('\n')
	n := int64(len(text))
	long := false
	for err == bufio.ErrBufferFull {
		long = true
		text, err = l.r.ReadSlice('\n')
		n += int64(len(text))
	}
	if err != nil && err != io.EOF || n == 0 {
		return Line{}, err
	}
	l.number++
	line := Line{Number: l.number, Start: l.offset, End: l.offset + n, Whole: err == nil}
	l.offset = line.End
	if line.Whole {
		text = bytes.TrimSuffix(text[:len(text)-1], []byte("\r"))
	}
	if line.Long = long || len(text) > MaxLine; !line.Long {
		line.Text = text
	}
	return line, nil
}
