package testbed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// client asks the API server and the programs' health endpoints. The few
// questions of a start do not deserve client-go, whose compilation a newcomer
// would have to wait for.
type client struct {
	server string
	api    *http.Client
	health *http.Client
}

func newClient(kubeconfig string) (*client, error) {
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server    string `json:"server"`
				Authority []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	content, err := os.ReadFile(kubeconfig)
	if err == nil {
		err = json.Unmarshal(content, &config)
	}
	if err == nil && (len(config.Clusters) != 1 || len(config.Users) != 1) {
		err = errors.New("not one cluster and one user")
	}
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	cluster, user := config.Clusters[0].Cluster, config.Users[0].User
	pair, err := tls.X509KeyPair(user.Certificate, user.Key)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(cluster.Authority)
	// No proxy: whatever the environment says, the nodes are on this machine.
	// No connection is kept: a node that loses power answers nothing, not even
	// that the connection is gone.
	transport := func(config *tls.Config) *http.Client {
		return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config,
			DisableKeepAlives: true}}
	}
	return &client{
		server: cluster.Server,
		api:    transport(&tls.Config{RootCAs: authorities, Certificates: []tls.Certificate{pair}}),
		// Some programs sign for themselves, and nothing is sent to them.
		health: transport(&tls.Config{InsecureSkipVerify: true}),
	}, nil
}

// get reads an object of the API.
func (c *client) get(ctx context.Context, path string, into any) error {
	return fetch(ctx, c.api, c.server+path, func(body io.Reader) error {
		if into == nil {
			return nil
		}
		return json.NewDecoder(body).Decode(into)
	})
}

// healthy asks a health endpoint.
func (c *client) healthy(ctx context.Context, url string) error {
	return fetch(ctx, c.health, url, func(io.Reader) error { return nil })
}

func fetch(ctx context.Context, from *http.Client, url string, read func(io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := from.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 500)) //nolint:errcheck // only to say more
		return fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return read(response.Body)
}

// nodeStatus is what the API server says of a node.
type nodeStatus struct {
	Status struct {
		Conditions []struct{ Type, Status, Message string }
		NodeInfo   struct{ BootID string }
	}
}

// ready says why the node is not Ready in the life with this boot id (any, if
// it is empty), or nil.
func (n nodeStatus) ready(bootID string) error {
	if bootID != "" && n.Status.NodeInfo.BootID != bootID {
		return errors.New("kubelet has not reported since the node's start")
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == "Ready" && condition.Status != "True" {
			return errors.New(condition.Message)
		} else if condition.Type == "Ready" {
			return nil
		}
	}
	return errors.New("kubelet has not reported")
}
