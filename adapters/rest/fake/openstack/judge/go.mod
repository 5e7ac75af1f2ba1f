module github.com/jointcloud/pcm/adapters/rest/fake/openstack/judge

go 1.26

require github.com/gophercloud/gophercloud/v2 v2.16.0
