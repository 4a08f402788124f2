package scale

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
)

// Users of the API server, each known by a token.
const (
	admin           = "admin"
	controllersUser = "controller" // may do what the controller's roles allow
)

// plane is a real control plane without nodes: etcd in memory, the API server,
// and the controller manager's controllers of volumes.
type plane struct {
	dir, bin string
	etcd     string // URL
	server   string // URL
	ports    []int

	mu      sync.Mutex
	running map[string]*process
}

// process is a program that was started.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	log  string
}

// newPlane prepares a control plane in a directory, with the programs of
// another one. Nothing runs yet.
func newPlane(dir, bin string) (*plane, error) {
	ports, err := freePorts(8)
	if err != nil {
		return nil, err
	}
	p := &plane{dir: dir, bin: bin, ports: ports, running: map[string]*process{},
		etcd: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), server: fmt.Sprintf("https://127.0.0.1:%d", ports[2])}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"serviceaccount.key": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY",
			Bytes: x509.MarshalPKCS1PrivateKey(key)}),
		"tokens.csv": []byte(`admin-token,admin,1,"system:masters"` + "\n" +
			`controller-token,system:serviceaccount:quarry-system:quarry-controller,2,"system:serviceaccounts"` + "\n"),
	}
	for _, user := range []string{admin, controllersUser} {
		content, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Config", "current-context": "scale",
			"clusters": []any{map[string]any{"name": "scale", "cluster": map[string]any{"server": p.server,
				"insecure-skip-tls-verify": true}}},
			"users": []any{map[string]any{"name": user, "user": map[string]any{"token": user + "-token"}}},
			"contexts": []any{map[string]any{"name": "scale", "context": map[string]any{"cluster": "scale",
				"user": user}}},
		})
		if err != nil {
			return nil, err
		}
		files[user+".kubeconfig"] = content
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *plane) path(name string) string { return filepath.Join(p.dir, name) }

// config is a user's client configuration, without limits of its own.
func (p *plane) config(user string) *rest.Config {
	return &rest.Config{Host: p.server, BearerToken: user + "-token", QPS: 5000, Burst: 10000,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func (p *plane) startEtcd() error {
	peer := fmt.Sprintf("http://127.0.0.1:%d", p.ports[1])
	_, err := p.start("etcd", filepath.Join(p.bin, "etcd"), nil, "--data-dir="+p.path("etcd-data"), "--unsafe-no-fsync",
		"--log-level=error",
		"--quota-backend-bytes=8589934592", "--max-request-bytes=8388608", "--max-txn-ops=1024",
		"--listen-client-urls="+p.etcd, "--advertise-client-urls="+p.etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	return err
}

// startServer starts the API server and returns when it is ready.
func (p *plane) startServer(ctx context.Context) error {
	key := p.path("serviceaccount.key")
	server, err := p.start("kube-apiserver", filepath.Join(p.bin, "kube-apiserver"), nil, "--etcd-servers="+p.etcd,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", p.ports[2]), "--cert-dir="+
			p.path("certs"), "--service-cluster-ip-range=10.0.0.0/24",
		"--service-account-issuer=https://quarry.test", "--service-account-key-file="+key,
		"--service-account-signing-key-file="+key,
		"--token-auth-file="+p.path("tokens.csv"), "--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount")
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(p.config(admin))
	if err != nil {
		return err
	}
	return until(ctx, server, "the API server to be ready", func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.server+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

// startManager starts the controllers of the controller manager that volumes
// need.
func (p *plane) startManager() error {
	_, err := p.start("kube-controller-manager", filepath.Join(p.bin, "kube-controller-manager"), nil,
		"--kubeconfig="+p.path("admin.kubeconfig"), "--leader-elect=false",
		"--secure-port=0", "--kube-api-qps=1000", "--kube-api-burst=2000",
		"--controllers=persistentvolume-binder-controller,persistentvolume-protection-controller,persistentvolumeclaim-protection-controller")
	return err
}

// start starts a program; it ends with this process at the latest.
func (p *plane) start(name, program string, environment []string, args ...string) (*process, error) {
	started := &process{name: name, cmd: exec.Command(program, args...), done: make(chan struct{}),
		log: p.path(name + ".log")}
	log, err := os.OpenFile(started.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	started.cmd.Stdout, started.cmd.Stderr = log, log
	started.cmd.Env = append(os.Environ(), environment...)
	started.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := started.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = started.cmd.Wait() // how it ended is in its log
		close(started.done)
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running[name] = started
	return started, nil
}

// stop ends a program with a signal and waits for that.
func (p *plane) stop(name string, signal os.Signal) {
	p.mu.Lock()
	running := p.running[name]
	delete(p.running, name)
	p.mu.Unlock()
	if running == nil {
		return
	}
	_ = running.cmd.Process.Signal(signal) // it may have ended by itself
	select {
	case <-running.done:
	case <-time.After(30 * time.Second):
		_ = running.cmd.Process.Kill()
		<-running.done
	}
}

// stopAll ends everything, the last ones first in the order of their
// dependence.
func (p *plane) stopAll() {
	p.mu.Lock()
	var names []string
	for name := range p.running {
		if name != "etcd" {
			names = append(names, name)
		}
	}
	p.mu.Unlock()
	for _, name := range append(names, "etcd") {
		p.stop(name, syscall.SIGKILL)
	}
}

// pid is the process id of a program that runs.
func (p *plane) pid(name string) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	running := p.running[name]
	if running == nil {
		return 0, fmt.Errorf("%s does not run", name)
	}
	return running.cmd.Process.Pid, nil
}

// kubectl runs kubectl as the administrator.
func (p *plane) kubectl(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, filepath.Join(p.bin, "kubectl"),
		append([]string{"--kubeconfig=" + p.path("admin.kubeconfig")}, args...)...)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %v: %w: %s", args, err, output)
	}
	return nil
}

// until asks again and again, until there is no error, ctx ends, or the program
// that it waits for does.
func until(ctx context.Context, of *process, what string, missing func() error) error {
	// Looking costs, too, and more the more there is to look at.
	for {
		looked := time.Now()
		err := missing()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50*time.Millisecond + 5*time.Since(looked)):
		case <-of.done:
			return fmt.Errorf("wait for %s: %s ended, see %s: %w\n%s", what, of.name, of.log, err, tail(of.log))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w)\n%s", what, context.Cause(ctx), err, tail(of.log))
		}
	}
}

// tail is the end of a log.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-3000):])
}

// freePorts finds ports that are free now. Another program may take one before
// ours does; then the run fails.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close() // all at the end, so that none is given twice
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
