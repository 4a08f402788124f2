# Quarry's image: the static program, and the filesystem tools the agent makes and checks volumes with.
# `make image` makes an image of the same layout, without a shell, where there is no container builder.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY cmd cmd
COPY csi csi
COPY nodeagent nodeagent
COPY provisioner provisioner
ARG VERSION=dev
ARG COMMIT=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT}" -o /quarry ./cmd/quarry

FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends e2fsprogs xfsprogs btrfs-progs \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 65532 nonroot \
 && useradd --uid 65532 --gid 65532 --home-dir / --no-create-home --shell /quarry nonroot
COPY --from=build /quarry /quarry
ARG VERSION=dev
LABEL org.opencontainers.image.title="quarry" \
      org.opencontainers.image.description="Node-local persistent volumes for Kubernetes" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Root, for the agent; the chart runs the controller as 65532.
USER 0:0
ENTRYPOINT ["/quarry"]
