//! The front end's messages: which of them are taken, and what they change.

use super::ring::Call;
use super::{Front, PROTOCOL_FEATURES};
use crate::machine::serve::memory::SharedMemory;
use instar_devices::blk::QUEUE_SIZE;
use instar_devices::virtio::{Interrupt, VirtioDevice};
use std::fs::File;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

impl Front {
    const fn offered(device_features: u64) -> u64 {
        device_features | 1 << VIRTIO_F_VERSION_1 | PROTOCOL_FEATURES
    }

    fn of_ring(index: u32) -> Result<()> {
        if index == 0 {
            Ok(())
        } else {
            Err(Error::InvalidParam)
        }
    }
}

/// Nothing of the kind is offered.
fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("this back end does not offer it"))
}

impl VhostUserBackendReqHandlerMut for Front {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_ring();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_ring();
        self.ring.base = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(Self::offered(self.device.features()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !Self::offered(self.device.features()) != 0 || self.ring.active {
            return Err(Error::InvalidParam);
        }
        self.accepted = features;
        // Without protocol features a ring is enabled by its kick.
        self.ring.enabled = features & PROTOCOL_FEATURES == 0;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.stop_ring();
        self.forget_memory();
        self.memory = Some(SharedMemory::map(regions, files)?);
        self.start_ring()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Self::of_ring(index)?;
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || size > QUEUE_SIZE || self.ring.active {
            return Err(Error::InvalidParam);
        }
        self.ring.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        Self::of_ring(index)?;
        let places = [descriptor, available, used];
        if self.ring.active && self.ring.places != Some(places) {
            return Err(Error::InvalidParam);
        }
        self.ring.places = Some(places);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Self::of_ring(index)?;
        if self.ring.active {
            return Err(Error::InvalidParam);
        }
        self.ring.base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        Self::of_ring(index)?;
        let base = self.stop_ring();
        self.ring.kick = None;
        Call::set(&self.ring.call.used, None);
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, event: Option<File>) -> Result<()> {
        Self::of_ring(index.into())?;
        self.ring.kick = event.map(Arc::new);
        self.start_ring()
    }

    fn set_vring_call(&mut self, index: u8, event: Option<File>) -> Result<()> {
        Self::of_ring(index.into())?;
        Call::set(&self.ring.call.used, event);
        // What was completed before it could be told.
        self.ring.call.queue(0);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, event: Option<File>) -> Result<()> {
        Self::of_ring(index.into())?;
        Call::set(&self.ring.call.broken, event);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Self::of_ring(index)?;
        self.ring.enabled = enable;
        if enable {
            return self.start_ring();
        }
        self.stop_ring();
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| Error::InvalidParam)?];
        self.device.read_config(offset, &mut bytes);
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        // There is nothing to write.
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        not_offered()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        not_offered()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        not_offered()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}
