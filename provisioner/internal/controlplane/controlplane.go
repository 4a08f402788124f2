// Package controlplane runs a real etcd, API server, controller manager and
// scheduler for tests, without nodes and without root. Nodes are objects only:
// what a kubelet or an agent would do, a test does through the API.
package controlplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Users of the API server.
const (
	// Admin may do everything.
	Admin = "admin"
	// Controller is Quarry's controller, and may do what its roles allow.
	Controller = "controller"
)

// ControlPlane is a running one.
type ControlPlane struct {
	url string
	dir string
}

// Start starts it and stops it when the test ends. It skips the test where the
// programs were not built.
func Start(t testing.TB, crds string) *ControlPlane {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a control plane; not with -short")
	}
	bin := programs(t)
	// Not t.TempDir: its path holds the test's name, and etcd's and the
	// certificates' names must stay short.
	dir, err := os.MkdirTemp("", "quarry-controlplane-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ports := freePorts(t, 3)
	c := &ControlPlane{dir: dir, url: fmt.Sprintf("https://127.0.0.1:%d", ports[2])}
	key := c.file(t, "serviceaccount.key", serviceAccountKey(t))
	tokens := c.file(t, "tokens.csv", []byte(
		`admin-token,admin,1,"system:masters"`+"\n"+
			`controller-token,system:serviceaccount:quarry-system:quarry-controller,2,`+
			`"system:serviceaccounts"`+"\n"))
	kubeconfig := c.file(t, "kubeconfig",
		[]byte(fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],
"users":[{"name":"c","user":{"token":"admin-token"}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"c"}}]}`, c.url)))

	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	peer := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	c.run(t, filepath.Join(bin, "etcd"), "--data-dir="+filepath.Join(dir, "etcd"),
		"--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--initial-cluster=default="+peer)
	kube := filepath.Join(bin, "kube")
	c.run(t, kube, "kube-apiserver", "--etcd-servers="+etcd, "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", ports[2]),
		"--cert-dir="+filepath.Join(dir, "certs"), "--service-cluster-ip-range=10.0.0.0/24",
		"--service-account-issuer=https://quarry.test", "--service-account-key-file="+key,
		"--service-account-signing-key-file="+key,
		"--token-auth-file="+tokens, "--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount")
	c.await(t)
	c.apply(t, crds)
	c.run(t, kube, "kube-controller-manager", "--kubeconfig="+kubeconfig, "--leader-elect=false",
		"--secure-port=0",
		"--kube-api-qps=500", "--kube-api-burst=500",
		"--controllers=persistentvolume-binder-controller,persistentvolume-protection-controller,"+
			"persistentvolumeclaim-protection-controller,persistentvolume-expander-controller,"+
			"ephemeral-volume-controller,statefulset-controller")
	c.run(t, kube, "kube-scheduler", "--kubeconfig="+kubeconfig, "--leader-elect=false",
		"--secure-port=0",
		"--kube-api-qps=500", "--kube-api-burst=500")
	return c
}

// Kubeconfig is a file with which programs reach it as the administrator.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// Config is the client configuration of a user.
func (c *ControlPlane) Config(user string) *rest.Config {
	return &rest.Config{Host: c.url, BearerToken: user + "-token", QPS: 500, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// made is when a directory of the cache was made: the newest is what the
// testbed runs now.
func made(dir string) time.Time {
	info, err := os.Stat(dir)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// programs finds the directory with etcd and kube, which the project's own
// testbed builds.
func programs(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("QUARRY_KUBE_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skipf("needs the testbed's control plane, and there is no cache directory: %v", err)
		}
		found, _ := filepath.Glob(filepath.Join(cache, "quarry-testbed", "kube-*"))
		if len(found) == 0 {
			t.Skip("needs the testbed's control plane: run `make test`, or set QUARRY_KUBE_DIR")
		}
		dir = slices.MaxFunc(found, func(a, b string) int { return made(a).Compare(made(b)) })
	}
	for _, name := range []string{"etcd", "kube"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Skipf("needs the testbed's control plane, run `make test`: %v", err)
		}
	}
	return dir
}

// run starts a program that ends with the test, and shows the end of its log if
// the test failed.
func (c *ControlPlane) run(t testing.TB, program string, args ...string) {
	t.Helper()
	name := filepath.Base(program)
	if name == "kube" {
		name = args[0]
	}
	path := filepath.Join(c.dir, name+".log")
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// Also when the test binary is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if text, err := os.ReadFile(path); err == nil && t.Failed() {
			t.Logf("the end of %s's log:\n%s", name, text[max(0, len(text)-2000):])
		}
	})
}

func (c *ControlPlane) file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// await waits until the API server is ready.
func (c *ControlPlane) await(t testing.TB) {
	t.Helper()
	client, err := rest.HTTPClientFor(c.Config(Admin))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/readyz", nil)
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the API server did not get ready")
		}
	}
}

// apply creates the CRDs of a directory, as a person would.
func (c *ControlPlane) apply(t testing.TB, dir string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(programs(t), "kube"), "kubectl", "--kubeconfig="+
		filepath.Join(c.dir, "kubeconfig"), "apply", "-f", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("applying %s: %v\n%s", dir, err, out)
	}
	wait := exec.Command(filepath.Join(programs(t), "kube"), "kubectl", "--kubeconfig="+
		filepath.Join(c.dir, "kubeconfig"),
		"wait", "--for=condition=Established", "--timeout=60s", "-f", dir)
	if out, err := wait.CombinedOutput(); err != nil {
		t.Fatalf("waiting for %s: %v\n%s", dir, err, out)
	}
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (c *ControlPlane) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(programs(t), "kube"),
		append([]string{"kubectl", "--kubeconfig=" + filepath.Join(c.dir, "kubeconfig")},
			args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// freePorts finds ports that are free now. Another program may take one before
// ours does; then the test fails.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // all at the end, so that none is given twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func serviceAccountKey(t testing.TB) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: "RSA PRIVATE KEY",
		Bytes: x509.MarshalPKCS1PrivateKey(key)}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
