// Package dns answers for the services of a cluster, as Kubernetes' DNS
// specification wants it, as far as tests need it: A records of services, of
// headless services and of their named endpoints. It knows no other domain.
//
// https://github.com/kubernetes/dns/blob/master/docs/specification.md
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// suffix is what all names end in that the server knows.
const suffix = ".svc.cluster.local."

// ttl is short, because pods move: the specification has 5 s for headless
// services.
const ttl = 5

// Server answers from a watched copy of the cluster's services and endpoints.
type Server struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

// Serve answers on the UDP address until ctx ends. The kubeconfig's user needs
// to list and watch services and endpointslices, as system:kube-proxy does.
func Serve(ctx context.Context, kubeconfig, address string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	services, slices := factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices()
	server := Server{services.Lister(), slices.Lister()}
	synced := []cache.InformerSynced{services.Informer().HasSynced, slices.Informer().HasSynced}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return context.Cause(ctx)
	}
	connection, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { connection.Close() })()
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := connection.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a question: %w", err)
		}
		if answer, err := server.answer(buffer[:n]); err == nil { // else it was no question
			connection.WriteTo(answer, from) //nolint:errcheck // it will ask again
		}
	}
}

// answer packs the answer to a packed question.
func (s Server) answer(packed []byte) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(packed)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	addresses, known := s.lookup(strings.ToLower(question.Name.String()))
	answer := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired,
			RecursionAvailable: true, // resolvers take a server without it for broken
		},
		Questions: []dnsmessage.Question{question},
	}
	if !known {
		answer.RCode = dnsmessage.RCodeNameError
	}
	if question.Type == dnsmessage.TypeA {
		for _, address := range addresses {
			answer.Answers = append(answer.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Type: dnsmessage.TypeA,
					Class: dnsmessage.ClassINET, TTL: ttl},
				Body: &dnsmessage.AResource{A: address},
			})
		}
	}
	return answer.Pack()
}

// lookup finds the addresses of SERVICE.NAMESPACE or, in a headless service,
// ENDPOINT.SERVICE.NAMESPACE.
func (s Server) lookup(name string) (addresses [][4]byte, known bool) {
	name, ok := strings.CutSuffix(name, suffix)
	labels := strings.Split(name, ".")
	if !ok || len(labels) < 2 || len(labels) > 3 {
		return nil, false
	}
	endpoint := ""
	if len(labels) == 3 {
		endpoint, labels = labels[0], labels[1:]
	}
	service, err := s.services.Services(labels[1]).Get(labels[0])
	if err != nil {
		return nil, false
	}
	if service.Spec.ClusterIP != corev1.ClusterIPNone {
		return appendIPv4(nil, service.Spec.ClusterIP), endpoint == ""
	}
	addresses = s.endpoints(service, endpoint)
	return addresses, endpoint == "" || len(addresses) > 0
}

// endpoints are the addresses of a headless service: of all that are ready (all
// at all, if the service publishes those too), or of the one with the host
// name.
func (s Server) endpoints(service *corev1.Service, hostname string) [][4]byte {
	ofService := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service.Name})
	slices, err := s.slices.EndpointSlices(service.Namespace).List(ofService)
	if err != nil {
		return nil
	}
	var addresses [][4]byte
	for _, slice := range slices {
		for _, endpoint := range slice.Endpoints {
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
			named := hostname == "" || endpoint.Hostname != nil && *endpoint.Hostname == hostname
			if ready && named {
				addresses = appendIPv4(addresses, endpoint.Addresses...)
			}
		}
	}
	return addresses
}

func appendIPv4(addresses [][4]byte, texts ...string) [][4]byte {
	for _, text := range texts {
		if address, err := netip.ParseAddr(text); err == nil && address.Is4() {
			addresses = append(addresses, address.As4())
		}
	}
	return addresses
}
