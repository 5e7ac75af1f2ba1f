// Package judge holds the fake OpenStack against gophercloud, the client that other
// tools use with real clouds, so that the fake stays honest where there is none to
// test with. It is a module of its own: nothing else of ours needs that client.
package judge
