// Package denylist holds what has been revoked, exactly and in memory, and knows
// how fresh that knowledge is.
//
//	a feed ──lines──► Parse ──► Source.Apply ──┐
//	an operator ────► Parse ──► Journal.Append │
//	                              └─ List.Add ─┴──► denials and cutoffs, by kind
//	                                                     ▲
//	a verified token ──────────────────────► List.Check ─┘   which rule, if any
//	a route's on_stale ────────────────────► List.State      may the answer be trusted
//
// Between gateways, revocations travel in records, each the next link of its
// source's chain:
//
//	Add's and Apply's news ─► Writer ─► Log ─► a hub's feed ─► Follower ─► Source.Apply
//	                                     ▲                        │
//	                                     └──── handed on ─────────┘
//
// The chain and its heartbeats tell a follower whether anything is missing,
// whoever carries it. A snapshot is all that a list holds, as a file: for followers
// that come late, and for the next start.
//
// There are two forms of revocation. A denial names one token (jti) or one
// session (sid) and is a bare identity. A cutoff names a subject, a client, a
// session or a whole issuer and a time: what was issued at or before it is
// refused. Everything is a union: cutoffs only rise, sets only grow, whatever
// order the lines come in, however often, from however many feeds. Nothing that
// a feed does (empty, older, truncated, recreated) lifts a revocation. An entry
// leaves by one door only, [List.Sweep], when no token that it covers can be
// accepted any more.
//
// It is not a cache: it has no admission policy and evicts nothing. Being full
// is an error that makes the source stale, for a list that silently drops an
// entry is a list that lets a revoked token pass. Nor is it a Bloom filter,
// whose answers are wrong in one direction by design and, where its hash state
// is shared, in the other one too.
package denylist
