package testbed

import (
	"fmt"

	"github.com/quarry-storage/quarry/test/testbed/network"
	"github.com/quarry-storage/quarry/test/testbed/node"
	"github.com/quarry-storage/quarry/test/testbed/pki"
)

// credentials are the cluster's keys and certificates.
type credentials struct {
	authority, frontProxy *pki.Authority
	serviceAccountKey     []byte
	serviceAccountPublic  []byte
	controlPlane          []node.File // node1's, without what every node has
	admin                 []byte      // a kubeconfig
}

func newCredentials() (*credentials, error) {
	var c credentials
	var err error
	if c.authority, err = pki.NewAuthority("kubernetes"); err != nil {
		return nil, err
	}
	if c.frontProxy, err = pki.NewAuthority("front-proxy-ca"); err != nil {
		return nil, err
	}
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make the key of service accounts: %w", err)
	}
	c.serviceAccountKey = keyPEM
	if c.serviceAccountPublic, err = pki.PublicPEM(key); err != nil {
		return nil, fmt.Errorf("make the key of service accounts: %w", err)
	}
	admin, err := c.kubeconfig(pki.Subject{Name: "kubernetes-admin", Groups: []string{"system:masters"}})
	if err != nil {
		return nil, err
	}
	c.admin = admin
	c.controlPlane, err = c.controlPlaneFiles()
	return &c, err
}

func (c *credentials) controlPlaneFiles() ([]node.File, error) {
	apiServer, err := c.authority.Issue(pki.Subject{Name: "kube-apiserver", Hosts: []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", "localhost",
		"127.0.0.1", network.NodeIP(1).String(), "10.96.0.1", // the first address of serviceSubnet
	}})
	if err != nil {
		return nil, err
	}
	kubeletClient, err := c.authority.Issue(pki.Subject{Name: "kube-apiserver-kubelet-client",
		Groups: []string{"system:masters"}})
	if err != nil {
		return nil, err
	}
	proxyClient, err := c.frontProxy.Issue(pki.Subject{Name: "front-proxy-client"})
	if err != nil {
		return nil, err
	}
	files := []node.File{
		secret("pki/ca.key", c.authority.KeyPEM),
		secret("pki/front-proxy-ca.crt", c.frontProxy.CertPEM),
		secret("pki/sa.key", c.serviceAccountKey),
		secret("pki/sa.pub", c.serviceAccountPublic),
	}
	for name, pair := range map[string]*pki.Pair{
		"apiserver": apiServer, "apiserver-kubelet-client": kubeletClient, "front-proxy-client": proxyClient,
	} {
		files = append(files, secret("pki/"+name+".crt", pair.CertPEM), secret("pki/"+name+".key", pair.KeyPEM))
	}
	files = append(files, secret("admin.conf", c.admin))
	for _, user := range []string{"controller-manager", "scheduler"} {
		config, err := c.kubeconfig(pki.Subject{Name: "system:kube-" + user})
		if err != nil {
			return nil, err
		}
		files = append(files, secret(user+".conf", config))
	}
	return files, nil
}

// nodeFiles are the credentials of one node.
func (c *credentials) nodeFiles(index int) ([]node.File, error) {
	name := nodeName(index)
	subject := pki.Subject{Name: "system:node:" + name, Groups: []string{"system:nodes"},
		Hosts: []string{name, network.NodeIP(index).String()}}
	serving, err := c.authority.Issue(subject)
	if err != nil {
		return nil, err
	}
	kubelet, err := c.kubeconfig(subject)
	if err != nil {
		return nil, err
	}
	proxy, err := c.kubeconfig(pki.Subject{Name: "system:kube-proxy"})
	if err != nil {
		return nil, err
	}
	files := []node.File{
		secret("pki/ca.crt", c.authority.CertPEM),
		secret("pki/kubelet.crt", serving.CertPEM),
		secret("pki/kubelet.key", serving.KeyPEM),
		secret("kubelet.conf", kubelet),
		secret("proxy.conf", proxy),
	}
	if index == 1 {
		files = append(files, c.controlPlane...)
	}
	return files, nil
}

func (c *credentials) kubeconfig(user pki.Subject) ([]byte, error) {
	pair, err := c.authority.Issue(user)
	if err != nil {
		return nil, err
	}
	return pki.Kubeconfig(serverURL(), c.authority, pair)
}

func secret(name string, content []byte) node.File {
	return node.File{Path: kubernetesDir + "/" + name, Content: content, Mode: 0o600}
}
