package filefeed

import (
	"os"
	"syscall"
	"time"
)

// changed is when anything about the file changed last. Unlike the time of its
// content, which tools that copy files set to what it was elsewhere, nobody sets it.
func changed(info os.FileInfo) time.Time {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(s.Ctim.Unix())
	}
	return info.ModTime()
}
