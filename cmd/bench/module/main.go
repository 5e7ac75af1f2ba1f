// Command module is an ordinary Go program for the benchmark to compile to
// WebAssembly: what it links is what such a module weighs.
package main

import "fmt"

func main() { fmt.Println("hello") }
