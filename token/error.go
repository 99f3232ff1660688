package token

import "durward/decision"

// An Error is a refusal: the reason from the fixed set, which decides the
// answer, and a detail for the operator. The detail may quote short claims of
// the token, never the token itself or its signature; it never goes to the client.
type Error struct {
	Reason decision.Reason
	Detail string
}

// Error is the reason and the detail.
func (e *Error) Error() string { return string(e.Reason) + ": " + e.Detail }

// clip bounds what an unverified token can write into a log line.
func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
