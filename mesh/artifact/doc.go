// Package artifact holds content and moves it between peers.
//
// An artifact is an immutable tree of files, named by the SHA-256 of its
// manifest ([Tree]). Small files stand in the manifest; others are cut into
// chunks of 1 MiB, each named by its SHA-256. So content that two artifacts
// share is stored and sent once, a transfer that was cut goes on where it
// stopped, and nothing is believed that was not hashed here.
//
// [Store] keeps artifacts on disk under a quota; [Service] serves them to other
// peers and fetches them from others.
//
// Durability: a blob is written under a temporary name and renamed, without
// fsync. Every read checks the hash, so what a crash of the machine spoils is
// found and counted as missing. A copy can be fetched again; for originals
// [Store.Import] syncs before it returns, and [Store.Sync] does so for all that
// was stored before the call, in one go for many.
package artifact
