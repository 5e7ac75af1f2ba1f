package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// KubernetesNode is a real kubelet with a containerd of its own.
type KubernetesNode struct {
	Name       string
	k          *Kubernetes
	programs   map[string]string
	containerd *Process
	kubelet    *Process
	bridge     string
	group      string // of its cgroups
}

// The images that nodes have.
const (
	HelperImage = "localhost/pcm-helper:1" // busybox
	TestImage   = "localhost/pcm-image"    // busybox and image.txt
	pauseImage  = "localhost/pause:1"
)

var cgroupKinds = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"}

// AddNode starts a node, i being 0 or 1. It has the images above.
func (k *Kubernetes) AddNode(ctx context.Context, i int) (*KubernetesNode, error) {
	programs, err := Need("containerd", "runc", "ctr", "busybox", "unshare", "nsenter", "ip")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		return nil, pcm.Errorf(pcm.NotFound, "%w: the CNI plugins in /usr/lib/cni (.ci/backends installs them)", ErrMissing)
	}
	var r [2]byte
	rand.Read(r[:])
	id := binary.BigEndian.Uint16(r[:])
	n := &KubernetesNode{Name: fmt.Sprintf("node%d", i), k: k, programs: programs, bridge: fmt.Sprintf("pcmk%d", id), group: fmt.Sprintf("pcm-kube-%d", id)}
	k.nodes = append(k.nodes, n)
	subnet := fmt.Sprintf("10.%d.%d", 200+int(id%50), id/256)
	dir := n.Name + "/"
	if err := os.MkdirAll(k.Path(n.Name), 0o755); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"link", "add", n.bridge, "type", "bridge"}, {"addr", "add", subnet + ".1/24", "dev", n.bridge}, {"link", "set", n.bridge, "up"}} {
		if _, err := k.Run(ctx, nil, programs["ip"], args...); err != nil {
			return nil, err
		}
	}
	if err := n.groups(); err != nil {
		return nil, err
	}
	files := map[string]string{
		"cni/10.conflist": fmt.Sprintf(`{"cniVersion":"0.4.0","name":%q,"plugins":[{"type":"bridge","bridge":%q,"isGateway":true,"ipMasq":false,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"%s.0/24","gateway":"%s.1"}]]}}]}`,
			n.bridge, n.bridge, k.Path(dir, "ipam"), subnet, subnet),
		"containerd.toml": fmt.Sprintf(`version = 2
root = %q
state = %q
oom_score = 0
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
`, k.Path(dir, "ctd"), k.Path(dir, "state"), n.socket(), pauseImage, k.Path(dir, "cni")),
	}
	// The kubelet insists on setting the machine's sysctls: it is shown files that
	// already hold what it wants, so that it changes nothing.
	var setup strings.Builder
	setup.WriteString("set -e\nmount --make-rshared /\n")
	for name, v := range map[string]string{"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000"} {
		file := "sysctl/" + strings.ReplaceAll(name, "/", "_")
		files[file] = v + "\n"
		fmt.Fprintf(&setup, "mount --bind %s /proc/sys/%s\n", k.Path(dir, file), name)
	}
	fmt.Fprintf(&setup, "exec %s -c %s\n", programs["containerd"], k.Path(dir, "containerd.toml"))
	files["up.sh"] = setup.String()
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	files["kubelet.yaml"] = fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /%s
oomScoreAdj: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
port: %d
readOnlyPort: 0
healthzPort: 0
containerRuntimeEndpoint: unix://%s
podLogsDir: %s
nodeStatusUpdateFrequency: 2s
evictionHard: {}
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
maxPods: 200
registerWithTaints: []
featureGates: {PodLogsQuerySplitStreams: true}
`, n.group, ports[0], n.socket(), k.Path(dir, "podlogs"))
	for name, text := range files {
		if err := k.Write(dir+name, text, 0o644); err != nil {
			return nil, err
		}
	}
	n.containerd, err = k.Start("containerd-"+n.Name, nil, programs["unshare"], "-m", "sh", k.Path(dir, "up.sh"))
	if err != nil {
		return nil, err
	}
	ctr := []string{"-a", n.socket(), "-n", "k8s.io"}
	if err := n.containerd.Ready(ctx, func(ctx context.Context) error {
		_, err := k.Run(ctx, nil, programs["ctr"], append(ctr, "version")...)
		return err
	}); err != nil {
		return nil, err
	}
	stay := []string{"/bin/busybox", "sh", "-c", `trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done`}
	for name, entry := range map[string][]string{pauseImage: stay, HelperImage: nil, TestImage: nil} {
		file := k.Path(dir, "image.tar")
		extra := map[string]string{}
		if name == TestImage {
			extra["image.txt"] = "of the image\n"
		}
		if err := writeImage(file, name, programs["busybox"], entry, extra); err != nil {
			return nil, err
		}
		if _, err := k.Run(ctx, nil, programs["ctr"], append(ctr, "image", "import", file)...); err != nil {
			return nil, err
		}
	}
	if err := n.StartKubelet(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *KubernetesNode) socket() string { return n.k.Path(n.Name, "ctd.sock") }

// StartKubelet starts the kubelet, again after Kubelet().Kill(), and waits until
// the node is ready.
func (n *KubernetesNode) StartKubelet(ctx context.Context) (err error) {
	n.kubelet, err = n.k.Start("kubelet-"+n.Name, nil, n.programs["nsenter"], "-m", "-t", strconv.Itoa(n.containerd.PID()), "--", n.k.bin["kubelet"],
		"--config", n.k.Path(n.Name, "kubelet.yaml"), "--kubeconfig", n.k.Path(n.Name+".kubeconfig"), "--root-dir", n.k.Path(n.Name, "kubelet"),
		"--hostname-override", n.Name, "--node-ip", n.address(), "--cert-dir", n.k.Path(n.Name, "pki"))
	if err != nil {
		return err
	}
	return n.kubelet.Ready(ctx, func(ctx context.Context) error {
		var node struct {
			Spec   struct{ Taints []any }
			Status struct {
				Conditions []struct{ Type, Status string }
			}
		}
		if err := n.k.Do(ctx, http.MethodGet, "/api/v1/nodes/"+n.Name, nil, &node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" && len(node.Spec.Taints) == 0 {
				return nil
			}
		}
		return fmt.Errorf("node %s is not ready", n.Name)
	})
}

// Kubelet is the kubelet's process.
func (n *KubernetesNode) Kubelet() *Process { return n.kubelet }

func (n *KubernetesNode) address() string {
	out, err := n.k.Run(context.Background(), nil, n.programs["ip"], "-4", "-o", "addr", "show", "dev", n.bridge)
	if f := strings.Fields(out); err == nil && len(f) > 3 {
		addr, _, _ := strings.Cut(f[3], "/")
		return addr
	}
	return ""
}

// groups makes the cgroups below which the node's are; with cgroup v1 the kubelet
// wants them to be there.
func (n *KubernetesNode) groups() error {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return os.MkdirAll(filepath.Join("/sys/fs/cgroup", n.group), 0o755)
	}
	for _, kind := range cgroupKinds {
		if err := os.MkdirAll(filepath.Join("/sys/fs/cgroup", kind, n.group), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		all, err := os.ReadFile("/sys/fs/cgroup/cpuset/" + f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join("/sys/fs/cgroup/cpuset", n.group, f), all, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the node with all of its containers.
func (n *KubernetesNode) stop() {
	if n.kubelet != nil {
		n.kubelet.Kill()
	}
	if n.containerd != nil {
		n.containerd.Stop(3 * time.Second)
	}
	roots := append([]string{}, "/sys/fs/cgroup/unified/"+n.group, "/sys/fs/cgroup/"+n.group)
	for _, kind := range cgroupKinds {
		roots = append(roots, filepath.Join("/sys/fs/cgroup", kind, n.group))
	}
	for try := range 50 {
		left := 0
		for _, root := range roots {
			var dirs []string
			filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				procs, _ := os.ReadFile(filepath.Join(dirs[i], "cgroup.procs"))
				for _, f := range strings.Fields(string(procs)) {
					if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
						syscall.Kill(pid, syscall.SIGKILL)
					}
				}
				if syscall.Rmdir(dirs[i]) != nil {
					left++
				}
			}
		}
		if left == 0 || try == 49 {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	for pid, command := range n.k.processes() {
		if strings.Contains(command, "containerd-shim") {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	n.k.Run(context.Background(), nil, n.programs["ip"], "link", "del", n.bridge) // if it is not there, good
}
