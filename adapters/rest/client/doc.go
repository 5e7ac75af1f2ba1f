// Package client calls the HTTP interfaces of clouds that nobody here has reason
// to trust. It logs in and signs, keeps secrets out of all that it says, and
// bounds what a server can make it do: how long it waits, how much it reads,
// where it lets itself be sent to, how often it tries again.
//
// A [Client] speaks to one back end. Its log-in goes to the addresses named in
// [Config.Origins], to those of the log-in's catalogue, and nowhere else.
// Environment variables for proxies are ignored: the addresses that a server's
// answers name must be resolved, and checked, here.
package client
