package scale

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/test/measure"
)

// prepare starts the control plane and has one volume made the usual way: what
// all others are copies of.
func (r *run) prepare(ctx context.Context) error {
	if err := r.startEtcd(); err != nil {
		return err
	}
	if err := r.startServer(ctx); err != nil {
		return err
	}
	repository, err := repositoryDir()
	if err != nil {
		return err
	}
	if err := r.kubectl(ctx, "apply", "-f", filepath.Join(repository, "charts/quarry/crds")); err != nil {
		return err
	}
	if err := r.kubectl(ctx, "wait", "--for=condition=Established", "--timeout=60s", "-f",
		filepath.Join(repository, "charts/quarry/crds")); err != nil {
		return err
	}
	// The rules of the chart's roles; a test of the provisioner compares them.
	if err := r.kubectl(ctx, "apply", "-f", filepath.Join(repository, "provisioner/testdata/rbac.yaml")); err != nil {
		return err
	}
	config := rest.CopyConfig(r.config(admin))
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf",
		"application/vnd.kubernetes.protobuf,application/json"
	if r.kube, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if err := r.makeTemplates(ctx); err != nil {
		return err
	}
	if err := r.startManager(); err != nil {
		return err
	}
	if err := r.startAgents(ctx); err != nil {
		return err
	}
	if err := r.startController(leaderName); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	template, err := measure.NewClaims(watching, r.kube, templateNamespace)
	if err != nil {
		return err
	}
	_, _, err = template.Bind(ctx, measure.Wish{Names: []string{templateClaim}, Class: class, Size: claimSize,
		Node: func(int) string { return templateNode }})
	if err != nil {
		return err
	}
	if err := r.markPublished(ctx); err != nil {
		return err
	}
	return r.settle(ctx, leaderName, "agents")
}

// markPublished writes into the template's Volume what the controller writes
// when it is some minutes old: nearly every volume of a cluster is.
func (r *run) markPublished(ctx context.Context) error {
	list, err := r.kube.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		name := list.Items[i].Annotations[v1alpha1.AnnotationVolume]
		patch := []byte(`{"spec": {"published": true}}`)
		err := r.kube.CoreV1().RESTClient().Patch(types.MergePatchType).AbsPath("/apis/"+v1alpha1.GroupVersion.String(),
			"volumes", name).Body(patch).Do(ctx).Error()
		if err != nil {
			return fmt.Errorf("mark Volume %s as published: %w", name, err)
		}
	}
	return nil
}

// makeTemplates makes the namespaces, the classes, and a node with its agent's
// pod.
func (r *run) makeTemplates(ctx context.Context) error {
	names := []string{templateNamespace, measured}
	for i := range loadNamespaces {
		names = append(names, fmt.Sprintf("load-%d", i))
	}
	for _, name := range names {
		if _, err := r.kube.CoreV1().Namespaces().Create(ctx,
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	for name, provisioner := range map[string]string{class: v1alpha1.LocalProvisioner,
		floorClass: measure.FloorProvisioner} {
		object := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner,
			VolumeBindingMode: &wait}
		if _, err := r.kube.StorageV1().StorageClasses().Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	driver := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.LocalProvisioner},
		Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}}
	if _, err := r.kube.StorageV1().CSIDrivers().Create(ctx, driver, metav1.CreateOptions{}); err != nil {
		return err
	}
	return r.makeNode(ctx)
}

// makeNode makes a node of a real one's weight, and the pod of its agent.
func (r *run) makeNode(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: templateNode, Labels: map[string]string{
		corev1.LabelHostname: templateNode, corev1.LabelArchStable: "amd64", corev1.LabelOSStable: "linux",
		corev1.LabelTopologyZone: "zone-1"}}}
	node, err := r.kube.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	node.Spec.Taints = nil // the API server starts nodes as not ready
	if node, err = r.kube.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
		return err
	}
	for _, condition := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure,
		corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		status := corev1.ConditionFalse
		if condition == corev1.NodeReady {
			status = corev1.ConditionTrue
		}
		node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: condition, Status: status,
			Reason: "Kubelet" + string(condition), Message: "kubelet is posting its status",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()})
	}
	for i := range 30 { // kubelet names up to 50
		node.Status.Images = append(node.Status.Images, corev1.ContainerImage{SizeBytes: 100e6,
			Names: []string{fmt.Sprintf("example.invalid/some/image-%d@sha256:%064d", i, i),
				fmt.Sprintf("example.invalid/some/image-%d:v1.2.3", i)}})
	}
	node.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse("64"),
		"memory": resource.MustParse("256Gi"), "pods": resource.MustParse("250")}
	node.Status.Capacity = node.Status.Allocatable
	if _, err := r.kube.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		return err
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "agent-" + templateNode, Namespace: systemNamespace,
			Labels: map[string]string{"app.kubernetes.io/name": "quarry", "app.kubernetes.io/component": "agent"}},
		Spec: corev1.PodSpec{NodeName: templateNode, Containers: []corev1.Container{{Name: "agent", Image: "agent"}}},
	}
	if pod, err = r.kube.CoreV1().Pods(systemNamespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return err
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	_, err = r.kube.CoreV1().Pods(systemNamespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// startController starts one of the two controllers, under the flags of the
// chart.
func (r *run) startController(name string) error {
	i := 3
	if name == standbyName {
		i = 5
	}
	var environment []string
	if r.MemoryLimit > 0 {
		environment = []string{fmt.Sprintf("GOMEMLIMIT=%d", r.MemoryLimit/10*9)}
	}
	_, err := r.start(name, r.Quarry, environment, "controller", "--namespace="+systemNamespace, "--kubeconfig="+
		r.path(controllersUser+".kubeconfig"),
		fmt.Sprintf("--health-address=127.0.0.1:%d", r.ports[i]), fmt.Sprintf("--metrics-address=127.0.0.1:%d",
			r.ports[i+1]))
	return err
}

// startAgents starts the agents and returns when each has reported its Pool.
func (r *run) startAgents(ctx context.Context) error {
	ready := r.path("agents-ready")
	if err := os.RemoveAll(ready); err != nil {
		return err
	}
	started, err := r.start("agents",
		r.Self[0], nil, append(r.Self[1:], "agents", r.path("admin.kubeconfig"), ready)...)
	if err != nil {
		return err
	}
	return until(ctx, started, "the agents' reports", func() error {
		_, err := os.Stat(ready)
		return err
	})
}

// load stops all that would look on, and copies.
func (r *run) load(ctx context.Context) error {
	list, err := r.kube.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if len(list.Items) != 1 {
		return fmt.Errorf("%d PersistentVolumes, want the template's alone", len(list.Items))
	}
	pv := &list.Items[0]
	for _, name := range []string{leaderName, "agents", "kube-controller-manager"} {
		r.stop(name, syscall.SIGTERM) // the leader gives its lease back
	}
	r.stop("kube-apiserver", syscall.SIGKILL) // it would wait for its watches to end
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{r.etcd}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("reach etcd: %w", err)
	}
	defer etcd.Close()
	started := time.Now()
	l := &loader{etcd: etcd, pv: pv.Name, record: pv.Annotations[v1alpha1.AnnotationVolume]}
	if err := l.load(ctx, r.Nodes, r.Volumes); err != nil {
		return err
	}
	r.result.LoadSeconds = time.Since(started).Seconds()
	r.say("etcd is filled: %.1f s", r.result.LoadSeconds)

	started = time.Now()
	if err := r.startServer(ctx); err != nil {
		return err
	}
	r.result.ServerSeconds = time.Since(started).Seconds()
	r.say("the API server is ready: %.1f s", r.result.ServerSeconds)
	if err := r.startManager(); err != nil {
		return err
	}
	if err := r.startAgents(ctx); err != nil {
		return err
	}
	r.say("the agents have reported")
	if r.claims, err = measure.NewClaims(ctx, r.kube, measured); err != nil {
		return err
	}
	return r.settle(ctx, "kube-controller-manager", "agents")
}
