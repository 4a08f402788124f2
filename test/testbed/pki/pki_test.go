package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"testing"

	"github.com/quarry-storage/quarry/test/testbed/pki"
	"github.com/stretchr/testify/require"
)

func TestIssue(t *testing.T) {
	authority, err := pki.NewAuthority("ca")
	require.NoError(t, err)
	pair, err := authority.Issue(pki.Subject{Name: "system:node:a", Groups: []string{"system:nodes"},
		Hosts: []string{"a", "10.77.0.1"}})
	require.NoError(t, err)
	loaded, err := tls.X509KeyPair(pair.CertPEM, pair.KeyPEM)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(loaded.Certificate[0])
	require.NoError(t, err)
	require.Equal(t, "system:node:a", certificate.Subject.CommonName)
	require.Equal(t, []string{"system:nodes"}, certificate.Subject.Organization)

	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(authority.CertPEM))
	for _, host := range []string{"a", "10.77.0.1"} {
		_, err = certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: host,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		require.NoError(t, err, host)
	}
	_, err = certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: "b"})
	require.Error(t, err)
}

func TestKubeconfig(t *testing.T) {
	authority, err := pki.NewAuthority("ca")
	require.NoError(t, err)
	user, err := authority.Issue(pki.Subject{Name: "me"})
	require.NoError(t, err)
	content, err := pki.Kubeconfig("https://10.77.0.1:6443", authority, user)
	require.NoError(t, err)
	var config struct {
		Users []struct {
			User struct {
				Key []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	require.NoError(t, json.Unmarshal(content, &config))
	require.Equal(t, user.KeyPEM, config.Users[0].User.Key)
}
