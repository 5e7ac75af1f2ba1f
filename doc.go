// Package pcm holds the nouns of the peer cooperation mechanism: who takes part
// (peers, accounts, passports), what is sold (pools, offers, classes), what is
// asked for (jobs, steps, tasks) and what is agreed (commands, trades, records).
//
// The package does no I/O and owns no clock. Every other package of the module
// imports it; it imports none of them.
package pcm
