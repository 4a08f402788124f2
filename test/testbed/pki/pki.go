// Package pki makes the certificates and kubeconfig files of a cluster, laid
// out as kubeadm does.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Authority signs certificates.
type Authority struct{ Pair }

// Pair is a certificate and its private key.
type Pair struct {
	certificate *x509.Certificate
	key         crypto.Signer
	CertPEM     []byte
	KeyPEM      []byte
}

// Subject is whom a certificate is for. A user of Kubernetes is the Name, and a
// member of the Groups.
type Subject struct {
	Name   string
	Groups []string
	Hosts  []string // names and addresses a server is reached by
}

// NewAuthority makes a self-signed certificate authority.
func NewAuthority(name string) (*Authority, error) {
	template := newTemplate(Subject{Name: name})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	template.ExtKeyUsage = nil
	pair, err := sign(template, nil)
	if err != nil {
		return nil, fmt.Errorf("make the authority %s: %w", name, err)
	}
	return &Authority{*pair}, nil
}

// Issue makes a certificate that is good for a client and for a server.
func (a *Authority) Issue(subject Subject) (*Pair, error) {
	pair, err := sign(newTemplate(subject), &a.Pair)
	if err != nil {
		return nil, fmt.Errorf("make a certificate for %s: %w", subject.Name, err)
	}
	return pair, nil
}

func newTemplate(subject Subject) *x509.Certificate {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: subject.Name, Organization: subject.Groups},
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().AddDate(10, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, host := range subject.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return template
}

// sign completes the template with a key and has it signed by the parent, or by
// itself where there is none.
func sign(template *x509.Certificate, parent *Pair) (*Pair, error) {
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.certificate, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Pair{
		certificate: certificate, key: key, KeyPEM: keyPEM,
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}, nil
}

// NewKey makes a private key, and returns it in PEM too.
func NewKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// PublicPEM is the key's public half.
func PublicPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Kubeconfig returns a kubeconfig file (JSON is YAML too) for the user at the
// server.
func Kubeconfig(server string, authority *Authority, user *Pair) ([]byte, error) {
	const name = "quarry-testbed"
	return json.MarshalIndent(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []any{map[string]any{"name": name, "cluster": map[string]any{
			"server": server, "certificate-authority-data": authority.CertPEM}}},
		"users": []any{map[string]any{"name": name, "user": map[string]any{
			"client-certificate-data": user.CertPEM, "client-key-data": user.KeyPEM}}},
		"contexts": []any{map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": name}}},
	}, "", "  ")
}
