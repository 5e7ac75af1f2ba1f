// Package judge holds the fake ModelArts and its object store against the clients
// that Huawei Cloud itself publishes, so that the fake stays honest where there is no
// real service to test with. It is a module of its own: the vendor's SDK has 250 MB.
package judge
