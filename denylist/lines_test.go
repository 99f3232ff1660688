package denylist

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	tests := []struct{ in, want string }{
		{"", ""},
		{"a", "1:a[0,1)torn "},
		{"a\n", "1:a[0,2) "},
		{"a\r\nb", "1:a[0,3) 2:b[3,4)torn "},
		{"a\r\r\nb\r", "1:a\r[0,4) 2:b\r[4,6)torn "},
		{"\n \n", "1:[0,1)blank 2: [1,3)blank "},
		{long + "\n", "1:" + long + "[0,65537) "},
		{long + "\r\na", "1:" + long + "[0,65538) 2:a[65538,65539)torn "},
		{long + "x\na\n", "1:[0,65538)long 2:a[65538,65540) "},
		{long + long + long + "\na\n", "1:[0,196609)long 2:a[196609,196611) "},
		{long + long, "1:[0,131072)torn long "},
	}
	for _, tt := range tests {
		var got strings.Builder
		lines := NewLineReader(strings.NewReader(tt.in))
		for {
			line, err := lines.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			var is []string
			if !line.Whole {
				is = append(is, "torn")
			}
			if line.Long {
				is = append(is, "long")
			}
			if line.Blank() {
				is = append(is, "blank")
			}
			fmt.Fprintf(&got, "%d:%s[%d,%d)%s ", line.Number, line.Text, line.Start, line.End, strings.Join(is, " "))
		}
		if got.String() != tt.want {
			t.Errorf("%.40q: got %.80q, want %.80q", tt.in, got.String(), tt.want)
		}
	}
}

func TestLinesReportErrors(t *testing.T) {
	lines := NewLineReader(io.MultiReader(strings.NewReader("a\nb"), broken{}))
	if line, err := lines.Next(); err != nil || string(line.Text) != "a" {
		t.Errorf("got %q, %v", line.Text, err)
	}
	// What precedes a failure to read is not the last line of the file.
	if line, err := lines.Next(); err != io.ErrClosedPipe {
		t.Errorf("got %q, %v, want %v", line.Text, err, io.ErrClosedPipe)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }
