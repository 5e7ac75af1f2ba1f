// Package script is what tasks do in conformance tests: a tiny interpreter of
// its own arguments that also builds for WebAssembly.
package script

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Main runs args, a sequence of steps, each a word and its parameters:
//
//	out TEXT          print to stdout, with a newline
//	err TEXT          print to stderr, with a newline
//	exit N            end with this exit code
//	write PATH TEXT   create a file, and its folders
//	append PATH TEXT  write to a file that exists
//	cat PATH          print a file
//	ls PATH           print the names in a folder, one a line
//	symlink TO PATH   make a link
//	env               print the environment, sorted, one a line
//	args              print the program's name
//	clock             print the time, in nanoseconds
//	sleep DURATION    wait
//	ticks N DURATION  print "tick 1" to "tick N", waiting in between
//	await PATH        wait until the file is there
//	spin              compute for ever
//	burn DURATION     use this much CPU time
//	alloc MIB         use this much memory
//	hold DURATION     keep what alloc took
//	flood BYTES       print this many bytes
//	try               the next step's failure is printed as "refused: ...", and ends nothing
//	term              from now on, SIGTERM prints "asked to end" and ends with code 0
//	deaf              from now on, SIGTERM is ignored
//	child DURATION    start a process of its own session that outlives this one
//	echo              copy standard input to stdout
//	window            print rows and columns of the terminal that is stdout
//	dial ADDRESS      connect, and print the first line that comes
//	serve PORT TEXT   from now on, greet whoever connects with TEXT, and echo what comes
//	abort             crash
//
// A step that fails ends the program with code 99.
func Main(args []string) {
	i := 0
	next := func() string {
		if i >= len(args) {
			fmt.Fprintln(os.Stderr, "script: a parameter is missing")
			os.Exit(98)
		}
		i++
		return args[i-1]
	}
	lenient := false
	for i < len(args) {
		op := next()
		if op == "try" {
			lenient = true
			continue
		}
		if err := step(op, next); err != nil {
			if !lenient {
				fmt.Fprintln(os.Stderr, "script:", err)
				os.Exit(99)
			}
			fmt.Println("refused:", err)
		}
		lenient = false
	}
}

var kept [][]byte // what alloc took

func step(op string, next func() string) error {
	switch op {
	case "out":
		fmt.Println(next())
	case "err":
		fmt.Fprintln(os.Stderr, next())
	case "exit":
		n, _ := strconv.Atoi(next())
		os.Exit(n)
	case "write":
		path, text := next(), next()
		if at := strings.LastIndexByte(path, '/'); at > 0 {
			if err := os.MkdirAll(path[:at], 0o755); err != nil {
				return err
			}
		}
		return os.WriteFile(path, []byte(text), 0o644)
	case "append":
		path, text := next(), next()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.WriteString(f, text)
		return err
	case "cat":
		data, err := os.ReadFile(next())
		os.Stdout.Write(data)
		return err
	case "ls":
		entries, err := os.ReadDir(next())
		for _, e := range entries {
			fmt.Println(e.Name())
		}
		return err
	case "symlink":
		to, path := next(), next()
		return os.Symlink(to, path)
	case "env":
		env := os.Environ()
		slices.Sort(env)
		fmt.Println(strings.Join(env, "\n"))
	case "args":
		fmt.Println(os.Args[0])
	case "clock":
		fmt.Println("clock", time.Now().UnixNano())
	case "sleep":
		d, err := time.ParseDuration(next())
		if err != nil {
			return err
		}
		time.Sleep(d)
	case "ticks":
		n, _ := strconv.Atoi(next())
		d, err := time.ParseDuration(next())
		if err != nil {
			return err
		}
		for i := range n {
			fmt.Println("tick", i+1)
			time.Sleep(d)
		}
	case "await":
		for path := next(); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(path); err == nil {
				return nil
			}
		}
	case "echo":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "burn":
		d, err := time.ParseDuration(next())
		if err != nil {
			return err
		}
		sum := 1
		for end := used() + d; used() < end; {
			for n := range 1 << 16 {
				sum += n
			}
		}
		if sum == 0 { // keeps the loop from being left out
			fmt.Println("unlikely")
		}
	case "spin":
		for n := uint64(1); ; n = n*6364136223846793005 + 1442695040888963407 {
			if n == 0 {
				fmt.Println("unlikely")
			}
		}
	case "alloc":
		n, _ := strconv.Atoi(next())
		blocks := make([][]byte, n)
		for i := range blocks {
			blocks[i] = make([]byte, 1<<20)
			for j := 0; j < len(blocks[i]); j += 4096 {
				blocks[i][j] = byte(i + 1)
			}
		}
		kept = blocks
	case "hold":
		d, err := time.ParseDuration(next())
		if err != nil {
			return err
		}
		time.Sleep(d)
		runtime.KeepAlive(kept)
	case "flood":
		n, _ := strconv.Atoi(next())
		block := []byte(strings.Repeat("0123456789abcde\n", 64))
		for n > 0 {
			k, err := os.Stdout.Write(block[:min(n, len(block))])
			if err != nil {
				return err
			}
			n -= k
		}
	case "term", "deaf", "child", "window", "dial", "serve":
		return native(op, next)
	case "abort":
		var p *int
		*p = 1
	default:
		return fmt.Errorf("unknown step %q", op)
	}
	return nil
}
