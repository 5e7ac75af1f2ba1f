package generate

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

const sshhostExample = "../../examples/adapters/sshhost"

// What is generated of the example is what would be generated now, nothing is left
// to write, and its author wrote no more than a tenth.
func TestSSHHostIsCurrent(t *testing.T) {
	isCurrent(t, sshhostExample)
}

// The adapter of the SSH host passes the suite on a server of OpenSSH.
func TestSSHHost(t *testing.T) {
	if !require.Named("typescript") {
		t.Skip("SKIPPED: it fetches packages of npm, and PCM_TEST_REQUIRE does not name typescript: 'make test-plugins' does")
	}
	dir := filepath.Join(t.TempDir(), "sshhost")
	copyExample(t, sshhostExample, dir)
	settings, err := json.Marshal(startSSHD(t))
	if err != nil {
		t.Fatal(err)
	}
	trial, err := json.Marshal(map[string]any{
		"patience": "3m", "pace": "1s", "many": 12, "parallel": 8, "missing": "no-such-program", "task": taskProgram(t), "subject": "generate (TypeScript, sshhost)", "env": []string{"PWD"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range [][]string{{"npm", "ci", "--no-audit", "--no-fund"}, {"npm", "test"}} {
		cmd := exec.CommandContext(t.Context(), step[0], step[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PCM="+pcmProgram(t), "ADAPTER_SETTINGS="+string(settings), "ADAPTER_TRIAL="+string(trial))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", step, err, out)
		}
	}
}

// copyExample copies what is the project's: what its tools made stays where it is.
func copyExample(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{"node_modules", "dist"} {
		if err := os.RemoveAll(filepath.Join(to, made)); err != nil {
			t.Fatal(err)
		}
	}
}

// startSSHD runs a server on loopback with keys of its own, for whoever runs the
// test, and returns the settings with which the example reaches it.
func startSSHD(t *testing.T) map[string]string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" { // where root's sshd keeps its unprivileged part in
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{"host", "client"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", at(key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s\n'.ci/backends plugins' installs what is needed", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	write := func(name, text string) {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("known_hosts", fmt.Sprintf("[127.0.0.1]:%d %s", port, read(t, at("host.pub"))))
	write("authorized_keys", read(t, at("client.pub")))
	write("sshd_config", fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %s\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\n"+
		"UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxSessions 32\nMaxStartups 64\n",
		port, at("host"), at("authorized_keys")))

	program, err := exec.LookPath("sshd")
	if err != nil {
		program = "/usr/sbin/sshd" // which calls itself by its whole path
	}
	logs, err := os.Create(at("sshd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	server := exec.Command(program, "-D", "-e", "-f", at("sshd_config"))
	server.Stdout, server.Stderr = logs, logs
	if err := server.Start(); err != nil {
		t.Fatalf("sshd: %v; '.ci/backends plugins' installs it", err)
	}
	over := make(chan error, 1)
	go func() { over <- server.Wait() }()
	t.Cleanup(func() {
		_ = server.Process.Kill()
		<-over
		if t.Failed() {
			t.Logf("sshd: %s", read(t, at("sshd.log")))
		}
	})
	for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		select {
		case err := <-over:
			over <- err
			t.Fatalf("sshd has ended: %v: %s", err, read(t, at("sshd.log")))
		default:
		}
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not listen: %s", read(t, at("sshd.log")))
		}
	}
	return map[string]string{
		"host": "127.0.0.1", "port": fmt.Sprint(port), "user": me.Username, "identity": at("client"),
		"known_hosts": at("known_hosts"), "folder": at("attempts"), "slots": "12",
	}
}
